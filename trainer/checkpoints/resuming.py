"""What may be continued, and what is another run.

Whatever a configuration says when a run is resumed is what holds from then on, and each setting that differs from the
checkpoint's is told. Refused is what the files of a checkpoint cannot follow (``FIXED`` says why): other weights, other
groups of the optimiser, another order of samples. ZeRO's stage and the shards are looked at where they are read
(``check_stage``, ``check_same_data``).

Allowed is the rest. Rates, betas, eps, weight decay, gradient clipping and the schedule are numbers of a step that is
still to be made; so are the weights of the losses, which change what is learnt, as their user wants. How samples are
cut, mirrored and captioned, and what is done about bad ones, changes what is seen of a sample and not which comes next.
Workers, micro-batches, buckets, compilation, folders and everything that reports change cost or place.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from segclip.trainer.checkpoints.folder import step_of
from segclip.trainer.config import RunConfig, flatten, load_run_config

__all__ = ["FIXED", "check_resumable", "check_same_data"]

FIXED = {
    "model.": "the weights are those of another network",
    "seed": "it keys the order of samples and every other random choice",
    "train.global_batch": "a step's number times it is the place in the data",
    "data.lanes": "part of the order of samples",
    "data.shuffle_block": "part of the order of samples",
    "data.epoch_end": "part of the order of samples",
    "optimizer.kind": "what is kept for each parameter means something else to another optimiser",
    "optimizer.implementation": "each counts its steps in another place",
    "zero.offload_optimizer": "another implementation of the optimiser, as above",
    "optimizer.frozen": "which parameters are in the groups of the optimiser",
    "optimizer.freeze_layers": "which parameters are in the groups of the optimiser",
    "optimizer.freeze_text_layers": "which parameters are in the groups of the optimiser",
    "optimizer.decay_rule": "which group a parameter is in",
    "optimizer.layer_decay": "which group a parameter is in, unless both are below 1",
    "train.precision": "what is kept in float32 and where, unless it is fp32 and tf32",
}
"""Settings that a run keeps, and why; ``model.`` stands for all of that section."""

WITHOUT_EFFECT = {
    "train.fp16.initial_scale_power": "without effect: the loss scale goes on from where it is",
}


def check_resumable(config: RunConfig, checkpoint: Path) -> list[str]:
    """Compare a configuration with that of the checkpoint it is to go on from.

    Returns:
        Each setting that differs, as ``optimizer.lr 0.001 -> 0.0005 (applied)``.

    Raises:
        ValueError: a setting differs that is ``FIXED``, ``checkpoint`` has made more steps than the run shall have, or
            its configuration is not readable.
    """
    if step_of(checkpoint) > config.train.steps:
        raise ValueError(
            f"train.steps is {config.train.steps}, but {checkpoint} has made {step_of(checkpoint)} steps already; "
            "give more steps to go on, or another run_dir to start anew"
        )
    # A setting that is newer than the checkpoint was at its default then.
    before, now = (flatten(each.model_dump(mode="json")) for each in (_config_of(checkpoint), config))
    changed = {name: (before.get(name), now.get(name)) for name in now if before.get(name) != now.get(name)}
    refused = [name for name, values in changed.items() if _is_fixed(name, values)]
    if refused:
        told = "; ".join(f"{name}: {before.get(name)!r} -> {now.get(name)!r}" for name in sorted(refused))
        raise ValueError(
            f"{checkpoint} belongs to a run with other settings ({told}); "
            "undo the change to resume, or give another run_dir to start anew"
        )
    return [
        f"{name} {_shown(old)} -> {_shown(new)} ({WITHOUT_EFFECT.get(name, 'applied')})"
        for name, (old, new) in changed.items()
    ]


def _config_of(checkpoint: Path) -> RunConfig:
    try:
        return load_run_config(checkpoint / "config.yaml")
    except ValueError as error:
        raise ValueError(
            f"{error}; this is the configuration that a checkpoint was written with: if it was changed by hand, undo "
            "that, and if another version of segclip wrote it, resume with that version"
        ) from error


def _is_fixed(name: str, values: tuple[Any, Any]) -> bool:
    if name == "optimizer.layer_decay":
        return 1.0 in values
    if name == "train.precision":
        return not {"fp32", "tf32"}.issuperset(values)
    return name in FIXED or name.startswith("model.")


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def check_same_data(before: dict[str, Any] | None, now: dict[str, Any], checkpoint: Path) -> None:
    """Refuse to continue a run on other shards. Where they lie and what they are called may change.

    Args:
        before, now: as ``segclip.trainer.export.describe_data`` gives them; None if that is not recorded.
        checkpoint: the checkpoint that ``before`` was recorded in.

    Raises:
        ValueError: other manifests, another order of the sets, or other weights.
    """
    if before is not None and _identity(before) != _identity(now):
        raise ValueError(
            f"{checkpoint} was trained on other shards ({_told(before)}) than these ({_told(now)}): samples would be "
            "lost and doubled; give the same shards to resume, or another run_dir to start anew"
        )


def _identity(data: dict[str, Any]) -> list[tuple[str, float | None]]:
    return [(each["manifest_sha256"], each.get("weight")) for each in data.get("sets", [data])]


def _told(data: dict[str, Any]) -> str:
    return ", ".join(
        f"{each['name']}: {each['samples']} samples, manifest {each['manifest_sha256'][:12]}"
        + (f", weight {each['weight']:g}" if each.get("weight") else "")
        for each in data.get("sets", [data])
    )
