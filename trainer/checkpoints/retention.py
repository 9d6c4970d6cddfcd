"""Which checkpoints of a run are kept."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Retention", "superfluous"]


class Retention(BaseModel):
    """What outlives newer checkpoints. The newest one is always kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keep_last: int = Field(
        2,
        ge=1,
        description="So many of the newest checkpoints are kept; older ones are deleted once a newer one is whole, "
        "unless keep_every or keep_best keeps them.",
    )
    keep_every: int = Field(
        0, ge=0, description="Checkpoints of steps that are multiples of it are never deleted; 0: no others."
    )
    keep_best: bool = Field(
        True, description="Save and keep the checkpoint with the best mean IoU (evaluation.every)."
    )


def superfluous(steps: Iterable[int], best: int | None, rule: Retention) -> list[int]:
    """The steps whose checkpoints may be deleted, oldest first.

    Args:
        steps: those of all checkpoints that are whole.
        best: step of the best score so far, None if there is none.
        rule: what is kept.
    """
    ordered = sorted(set(steps))
    newest = ordered[-rule.keep_last :]
    return [
        step
        for step in ordered
        if step not in newest
        and not (rule.keep_every and step % rule.keep_every == 0)
        and not (rule.keep_best and step == best)
    ]
