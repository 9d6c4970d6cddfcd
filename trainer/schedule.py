"""Learning-rate schedules: a factor in [0, 1] as a function of progress through the run."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["ScheduleConfig", "learning_rate_factor"]

Kind = Literal["cosine", "linear", "constant", "wsd"]


class ScheduleConfig(BaseModel):
    """How the learning rates rise and fall over the run: each is its setting in ``optimizer`` times a factor."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind = Field(
        "cosine",
        description="Shape after the warm-up: cosine or linear down to the end of the run, constant, or wsd (warm-up, "
        "stable, decay): constant and then linear down in the last share of the run, so that a run can be prolonged "
        "from any checkpoint of its stable part.",
    )
    warmup: float = Field(0.1, ge=0, lt=1, description="Share of the run in which the rate rises linearly.")
    start: float = Field(
        0.0, ge=0, le=1, description="Factor on the learning rates where the warm-up begins."
    )
    end: float = Field(0.0, ge=0, le=1, description="Factor on them at the end of a cosine or of wsd.")
    decay: float = Field(0.2, gt=0, le=1, description="Share of the run in which wsd goes down, at its end.")

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.kind == "wsd" and self.warmup + self.decay > 1:
            raise ValueError(
                f"schedule.warmup is {self.warmup:g} and schedule.decay {self.decay:g}: together they are more than "
                "the whole run; lower one of them"
            )
        return self

    def factor(self, step: int, steps: int) -> float:
        """Factor of update number ``step`` (the first is 1) of ``steps``."""
        return learning_rate_factor(step / steps, self.kind, self.warmup, self.start, self.end, self.decay)


def learning_rate_factor(
    progress: float,
    kind: Kind = "cosine",
    warmup: float = 0.0,
    start: float = 0.0,
    end: float = 0.0,
    decay: float = 0.2,
) -> float:
    """Factor on the base learning rate, as the original trainer computes it (``wsd`` is not the original's).

    Args:
        progress: share of the run done, 0 to 1.
        kind: shape after the warm-up.
        warmup: share of the run that warms up. -1 is what the original calls "none": its cosine then starts at one
            half; 0 is a cosine from one.
        start: factor at progress 0 when there is a warm-up.
        end: factor at progress 1 of a cosine or of wsd.
        decay: share of the run in which wsd goes down.
    """
    if progress < warmup:
        return start + (1.0 - start) * progress / warmup
    if kind == "constant":
        return 1.0
    if kind == "wsd":
        left = (1.0 - progress) / decay
        return 1.0 if left >= 1 else end + (1.0 - end) * max(left, 0.0)
    decayed = min((progress - warmup) / (1.0 - warmup), 1.0)
    if kind == "linear":
        return 1.0 - decayed
    return end + (1.0 - end) * 0.5 * (1.0 + math.cos(math.pi * decayed))
