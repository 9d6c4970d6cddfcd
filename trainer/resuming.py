"""What may be continued, and what is another run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from segclip.models.config import ModelConfig
from segclip.trainer.config import RunConfig, flatten

__all__ = ["check_resumable", "check_same_data", "step_of"]


def check_resumable(config: RunConfig, checkpoint: Path) -> None:
    """Refuse to continue a run whose identity has changed.

    Raises:
        ValueError: model, data order or batch differ from those that wrote ``checkpoint``, or it has made more steps
            than the run shall have.
    """
    if step_of(checkpoint) > config.train.steps:
        raise ValueError(
            f"train.steps is {config.train.steps}, but {checkpoint} has made {step_of(checkpoint)} steps already; "
            "give more steps to go on, or another run_dir to start anew"
        )
    before = flatten(yaml.safe_load((checkpoint / "config.yaml").read_text(encoding="utf-8")))
    now = flatten(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json"))))
    # A setting that is newer than the checkpoint was at its default then.
    newer = {"model": ModelConfig().model_dump(mode="json"), "data": {"epoch_end": "join"}}
    before = flatten(newer) | before
    fixed = ("model.", "seed", "train.global_batch", "data.lanes", "data.shuffle_block", "data.epoch_end")
    changed = [
        f"{name}: {before.get(name)!r} -> {now.get(name)!r}"
        for name in sorted(set(before) | set(now))
        if name.startswith(fixed) and before.get(name) != now.get(name)
    ]
    if changed:
        raise ValueError(
            f"{checkpoint} belongs to a run with other settings ({'; '.join(changed)}); "
            "undo the change to resume, or give another run_dir to start anew"
        )


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


def step_of(checkpoint: Path) -> int:
    """Steps made when a checkpoint was written, from its name."""
    return int(checkpoint.name.removeprefix("step-"))
