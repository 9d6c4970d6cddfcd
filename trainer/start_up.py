"""From a configuration to a run that is ready for its next step: folder, data, engine, and where it goes on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from segclip.data_pipelines.loader import BatchStream, build_loader
from segclip.models.safe_pickles import check_pickles
from segclip.trainer.checkpoints.folder import step_of
from segclip.trainer.checkpoints.loading import load_checkpoint
from segclip.trainer.checkpoints.other_ranks import written_by_others
from segclip.trainer.checkpoints.reconfigured import keep_settings
from segclip.trainer.checkpoints.resuming import check_resumable, check_same_data
from segclip.trainer.checkpoints.train_state import TrainState, read_state
from segclip.trainer.checkpoints.upload import restored
from segclip.trainer.config import RunConfig
from segclip.trainer.distributed import Ranks, agreed
from segclip.trainer.engine import build_engine
from segclip.trainer.export import describe_data
from segclip.trainer.micro_batches import batch_sizes
from segclip.trainer.precision import resolve_precision
from segclip.trainer.run_lock import hold_run_folder
from segclip.trainer.scoring import check_evaluation

__all__ = ["Ready", "announce", "start_up"]


@dataclass(frozen=True)
class Ready:
    """A run before its next step.

    Attributes:
        engine: of DeepSpeed, with the weights and moments of the checkpoint if there is one.
        stream: batches of this rank, beginning with that of the next step.
        data: name, size and hash of each shard set.
        micro_batch: samples of a rank in one pass.
        latest: the checkpoint it goes on from.
        state: what that says of the run.
        changes: settings that differ from those the checkpoint was made with.
    """

    engine: Any
    stream: BatchStream
    data: dict[str, Any]
    micro_batch: int
    latest: Path | None
    state: TrainState | None
    changes: list[str]

    @property
    def first_step(self) -> int:
        """Steps made already."""
        return self.state.step if self.state is not None else 0


def start_up(config: RunConfig, ranks: Ranks) -> Ready:
    """Make or find the run's folder, open the data, build the engine, load the newest intact checkpoint.

    Raises:
        RankError: something a user can mend, on any rank; raised on all of them.
    """
    run_dir = Path(config.run_dir)
    agreed(ranks, lambda: run_dir.mkdir(parents=True, exist_ok=True))
    agreed(ranks, lambda: hold_run_folder(run_dir) if ranks.is_first else None)
    latest = restored(config, ranks)
    changes = agreed(ranks, lambda: [] if latest is None else check_resumable(config, latest))
    agreed(ranks, lambda: check_evaluation(config.evaluation))
    _, micro_batch = agreed(
        ranks, lambda: batch_sizes(config.train.global_batch, ranks.world_size, config.train.micro_batch)
    )
    if ranks.device.type == "cpu":
        # Moments of parameters that receive next to no gradient decay into denormals, which are slow to compute with.
        torch.set_flush_denormal(True)
    stream = agreed(ranks, lambda: _open_data(config, ranks, 0 if latest is None else step_of(latest)))
    data = describe_data(stream.sets)
    if latest is not None:
        agreed(ranks, lambda: check_same_data(read_state(latest).data, data, latest))
        agreed(ranks, lambda: check_pickles(latest) if ranks.is_first else None)
    regroups = agreed(ranks, lambda: latest is not None and written_by_others(latest, ranks.world_size))
    engine = agreed(
        ranks, lambda: build_engine(config, ranks, resuming=latest is not None, other_ranks=regroups)
    )
    with keep_settings(engine):
        state = load_checkpoint(engine, latest, ranks) if latest is not None else None
    return Ready(engine, stream, data, micro_batch, latest, state, changes)


def _open_data(config: RunConfig, ranks: Ranks, start_step: int) -> BatchStream:
    return build_loader(
        config.data,
        patch_size=config.model.patch_size,
        rank=ranks.rank,
        world_size=ranks.world_size,
        batch_size=config.train.global_batch // ranks.world_size,
        seed=config.seed,
        start_step=start_step,
    )


def announce(config: RunConfig, ranks: Ranks, run: Ready) -> None:
    """Print what is about to be trained, on the first rank."""
    if not ranks.is_first:
        return
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in run.engine.module.parameters())
    precision = resolve_precision(config.train.precision, ranks.device)
    local_batch = config.train.global_batch // ranks.world_size
    passes = (
        f" ({local_batch // run.micro_batch} passes of {run.micro_batch})"
        if run.micro_batch < local_batch
        else ""
    )
    print(
        f"{config.name}: {parameters / 1e6:.2f} M parameters, {precision}, ZeRO stage {config.zero.stage}, "
        f"{ranks.world_size} x {local_batch} samples a step{passes}, "
        f"{config.train.steps} steps, {ranks.device.type}",
        flush=True,
    )
    if run.latest is None:
        return
    print(f"resuming from {run.latest} after step {run.first_step}", flush=True)
    for change in run.changes:
        print(f"changed since step {run.first_step}: {change}", flush=True)
    if run.first_step == config.train.steps:
        print(
            f"all {run.first_step} steps are made: nothing is trained, only exported and scored; "
            "raise train.steps to train on, or give another run_dir to start anew",
            flush=True,
        )
