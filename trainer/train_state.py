"""The small file of a checkpoint that needs neither engine nor ranks: where the run stands."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["STATE", "Best", "TrainState", "read_state"]

STATE = "state.json"


@dataclass(frozen=True)
class Best:
    """The step of the best score on the images that are scored while training, and its mean IoU."""

    step: int
    miou: float


@dataclass(frozen=True)
class TrainState:
    """What continues a run besides the shards that DeepSpeed writes.

    Randomness and the data order are functions of (seed, position), so ``step`` is the whole data position: the next
    sample is number ``step * global_batch`` of the stream.
    """

    step: int
    seed: int
    global_batch: int
    mlflow_run_id: str | None
    git_commit: str | None
    data: dict[str, Any] | None = None
    """What the run reads; see ``segclip.trainer.export.describe_data``."""
    data_counts: dict[str, int] = field(default_factory=dict)
    """What happened to the data so far; see ``segclip.trainer.data_counts``."""
    bad_shards: list[int] = field(default_factory=list)
    """Numbers of the shards found bad so far."""
    best: Best | None = None
    """Of the scores so far, this step's included; its checkpoint is kept."""


def read_state(folder: Path) -> TrainState:
    """State of a published checkpoint."""
    fields = json.loads((folder / STATE).read_text(encoding="utf-8"))
    best = fields.pop("best", None)
    return TrainState(**fields, best=None if best is None else Best(**best))
