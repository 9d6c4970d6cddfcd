"""Errors of one rank that end all of them, said once."""

from __future__ import annotations

from collections.abc import Sequence

from segclip.console import UserError

__all__ = ["RankError", "raise_first"]


class RankError(UserError):
    """An error on some rank, raised on all: ``is_reporter`` tells the one rank that should print it."""

    def __init__(self, message: str, is_reporter: bool) -> None:
        super().__init__(message)
        self.is_reporter = is_reporter


def raise_first(problems: Sequence[str | None], rank: int, cause: BaseException | None) -> None:
    """Do nothing if no rank has a problem.

    Args:
        problems: what each rank has to say, in their order; the same on all ranks.
        rank: of this process.
        cause: of this rank's own problem.

    Raises:
        RankError: with what the lowest failing rank says, and its number unless all say the same.
    """
    failing = [number for number, text in enumerate(problems) if text is not None]
    if failing:
        first = failing[0]
        prefix = "" if all(text == problems[first] for text in problems) else f"rank {first}: "
        raise RankError(f"{prefix}{problems[first]}", is_reporter=rank == first) from cause
