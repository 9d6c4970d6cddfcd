"""Steps whose gradient is not finite: told, counted, and the run stopped when they do not end.

Skipping itself is the engine's (``segclip.trainer.engine.gradient_norm``): the decision is made on the reduced
gradient, so it is the same on all ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from segclip.rank_errors import RankError
from segclip.trainer.checkpoints.folder import find_latest
from segclip.trainer.distributed import Ranks
from segclip.trainer.engine import loss_scale

__all__ = ["SkippedSteps", "step_health"]


class SkippedSteps:
    """Watches the gradient norm of each step.

    Args:
        most_in_a_row: steps that may be skipped one after the other.
        run_dir: whose last checkpoint is named in the end.
        ranks: all of them.
        finish_saving: returns when no checkpoint is being written any more, so that the one named is the last.
    """

    def __init__(
        self, most_in_a_row: int, run_dir: str | Path, ranks: Ranks, finish_saving: Callable[[], None]
    ) -> None:
        self._most = most_in_a_row
        self._run_dir = run_dir
        self._ranks = ranks
        self._finish_saving = finish_saving
        self._in_a_row = 0

    def look(self, gradient_norm: float, step: int) -> None:
        """Take note of ``step``.

        Raises:
            RankError: too many steps in a row were skipped; raised on all ranks.
        """
        if math.isfinite(gradient_norm):
            self._in_a_row = 0
            return
        self._in_a_row += 1
        if self._in_a_row > self._most:
            self._finish_saving()
            raise RankError(
                f"the gradient was not finite in {self._in_a_row} steps in a row, up to step {step}; all were skipped, "
                f"and train.max_skipped allows {self._most}: lower optimizer.lr, raise schedule.warmup, or train in "
                f"bf16 or fp32; the last good checkpoint is {find_latest(self._run_dir) or 'none yet'}",
                is_reporter=self._ranks.is_first,
            )
        if self._ranks.is_first:
            print(
                f"step {step} skipped: its gradient is not finite ({self._in_a_row} in a row; train.max_skipped allows "
                f"{self._most})",
                flush=True,
            )


def step_health(engine: Any) -> dict[str, float]:
    """Steps skipped since the run began, resumed or not; and the loss scale of float16."""
    scale = loss_scale(engine)
    return {
        "skips/nonfinite": float(engine.skipped_steps),
        **({} if scale is None else {"loss_scale": scale}),
    }
