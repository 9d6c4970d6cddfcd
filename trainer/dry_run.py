"""What a run would do, without doing any of it: ``trainer/run.py --config … --dry-run``."""

from __future__ import annotations

from typing import Any

import torch

from segclip.data_pipelines.order import check_split
from segclip.data_pipelines.shard_sets import ShardSet, build_mixture, read_sets
from segclip.models.flops import training_flops
from segclip.trainer.config import RunConfig
from segclip.trainer.memory import count_parameters, predict
from segclip.trainer.micro_batches import batch_sizes
from segclip.trainer.progress import duration
from segclip.trainer.scoring import check_evaluation
from segclip.trainer.utilisation import peak_flops
from segclip.trainer.zero import check_combination

__all__ = ["ASSUMED_CARD", "ASSUMED_MFU", "describe"]

# What the estimate of time rests on where nothing better is known: a card, and the share of its peak that is reached.
ASSUMED_CARD, ASSUMED_MFU = "H100", 0.30


def describe(config: RunConfig, processes: int) -> list[tuple[str, str]]:
    """Name and value of each thing worth knowing before a run. Data set and evaluation are opened, as the run would.

    Args:
        config: the run.
        processes: ranks it shall have.

    Raises:
        ValueError: what the run itself would be refused for: sizes, settings that do not go together, data that is not
            there, or shards too few for the readers.
    """
    if processes < 1:
        raise ValueError(f"a run has at least one process, not {processes}")
    local_batch, micro_batch = batch_sizes(config.train.global_batch, processes, config.train.micro_batch)
    precision = "bf16" if config.train.precision == "auto" else config.train.precision
    check_combination(config.zero, config.optimizer, precision)
    check_evaluation(config.evaluation)
    sets = read_sets(config.data)
    shards = sum(len(each.shards) for each in sets)
    check_split(shards=shards, lanes=config.data.lanes, world_size=processes, workers=config.data.workers)
    build_mixture(config.data, sets, global_batch=config.train.global_batch, seed=config.seed)

    passes = -(-local_batch // micro_batch)
    counts = count_parameters(config)
    memory = predict(config, processes, precision, "cuda")
    flops = training_flops(config.model, config.data.words, reconstruction=config.loss.reconstruction > 0)
    # Cached features cost one more forward pass.
    work = flops * (4 / 3 if passes > 1 else 1)
    name, peak = _card()
    seconds = config.train.steps * config.train.global_batch * work / (processes * peak * ASSUMED_MFU)
    parameters = (counts.trained + counts.frozen) / 1e6
    chosen = " (auto: fp32 where the hardware has no bf16)" if config.train.precision == "auto" else ""
    rows = [
        ("network", f"{parameters:.2f} M parameters, {counts.trained / 1e6:.2f} M trained"),
        ("precision", precision + chosen),
        ("data", _data(config, sets)),
        (
            "batch",
            f"{config.train.global_batch} = {processes} ranks x {passes} micro-batches x {micro_batch}",
        ),
        ("steps", f"{config.train.steps}, {_epochs(config, sets)}"),
        ("checkpoints", f"every {config.checkpoint.every} steps, into {config.run_dir}"),
        ("ZeRO", f"stage {config.zero.stage}"),
        ("memory a card", f"{memory.total / 2**30:.2f} GiB predicted (segclip-doctor memory has the parts)"),
        ("arithmetic", f"{flops / 1e9:.1f} GFLOP a sample, forward and backward"),
        ("time", f"{duration(seconds)}, if each rank has {name} and reaches {ASSUMED_MFU:.0%} of its peak"),
    ]
    return rows


def _card() -> tuple[str, float]:
    """The card here, or the assumed one, and its peak."""
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        peak = peak_flops(name)
        if peak is not None:
            return name, peak
    peak = peak_flops(ASSUMED_CARD)
    assert peak is not None
    return f"an {ASSUMED_CARD}", peak


def _data(config: RunConfig, sets: list[ShardSet]) -> str:
    parts = [
        f"{each.name}: {each.manifest.samples} samples in {len(each.shards)} shards"
        + ("" if each.weight is None else f", weight {each.weight:g}")
        for each in sets
    ]
    return "; ".join(parts) + f"; {config.data.workers} workers a rank"


def _epochs(config: RunConfig, sets: list[ShardSet]) -> str:
    drawn = config.train.steps * config.train.global_batch
    total: Any = sum(each.weight or 0.0 for each in sets)
    if not config.data.weighted:
        return f"{drawn / sum(each.manifest.samples for each in sets):.2f} epochs"
    return ", ".join(
        f"{drawn * (each.weight or 0.0) / total / each.manifest.samples:.2f} epochs of {each.name}"
        for each in sets
    )
