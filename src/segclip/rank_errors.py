"""Errors of one rank that end all of them, said once, and how ranks end then."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from segclip.console import UserError

__all__ = ["GRACE_SECONDS", "LOST", "RankError", "leave", "lost_peer", "raise_first"]

LOST = 69
"""Exit code of a rank whose peer is lost: nothing is wrong with what it did, and the same command may go on with it."""
GRACE_SECONDS = 5.0
"""Longer than the failing rank needs to say what is wrong: launchers end all ranks as soon as one has exited."""


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


def lost_peer(error: Exception) -> bool:
    """Whether a collective broke because a process at its other end is gone."""
    import torch.distributed as dist

    text = str(error).lower()
    return isinstance(error, dist.DistBackendError) or any(
        words in text for words in ("closed by peer", "reset by peer", "connection refused", "broken pipe")
    )


def leave(code: int) -> NoReturn:
    """End at once: other ranks may wait in a collective, and so would an orderly exit."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
