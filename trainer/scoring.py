"""Score an exported model at the end of a run and record the result with it."""

from __future__ import annotations

from pathlib import Path



from segclip.trainer.config import RunConfig
from segclip.trainer.tracking import Tracker

__all__ = ["score"]


def score(config: RunConfig, export: Path, tracker: Tracker | None) -> float:
    """Mean IoU of ``export`` on ``config.evaluation.dataset``, printed, written beside the export and recorded."""
    raise NotImplementedError
