"""What every command line of the project shares: one-line errors, ``--debug``, progress bars."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

__all__ = [
    "EXIT_USER_ERROR",
    "Finding",
    "Status",
    "UserError",
    "cli",
    "nearest",
    "one_line",
    "progress",
    "warn",
    "words_of",
]

EXIT_USER_ERROR = 2


class UserError(RuntimeError):
    """Something outside the program that its user can mend (a server that is down, a full disk)."""


Status = Literal["ok", "warning", "broken"]


@dataclass(frozen=True)
class Finding:
    """One line of a doctor's report: what was looked at, how it is, and what to do about it."""

    name: str
    status: Status
    text: str
    remedy: str = ""


def words_of(error: BaseException, longest: int | None = None) -> str:
    """The message of ``error`` on one line, cut to some characters."""
    return " ".join(str(error).split())[:longest]


def one_line(error: BaseException) -> str:
    """The message of ``error`` on one line, with its type where the message alone says too little."""
    text = words_of(error)
    if isinstance(error, (ValueError, UserError)) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def warn(text: str) -> None:
    """Say on stderr what goes on after it."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def nearest(name: str, allowed: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the allowed name closest to ``name``, or an empty string."""
    close = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def cli(
    main: Callable[[argparse.Namespace], int | None],
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None = None,
) -> NoReturn:
    """Run a command line and exit.

    A ``ValueError``, ``OSError`` or ``UserError`` becomes one line on stderr and exit code 2; ``--debug`` shows the
    stack trace instead. Any other exception is a fault of ours and keeps its stack trace.
    """
    parser.add_argument("--debug", action="store_true", help="show the stack trace of an error")
    arguments = parser.parse_args(argv)
    try:
        code = main(arguments)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, UserError) as error:
        if arguments.debug:
            raise
        print(f"error: {one_line(error)}", file=sys.stderr, flush=True)
        sys.exit(EXIT_USER_ERROR)
    sys.exit(code or 0)


class _Rate(ProgressColumn):
    """Items per second since the start of a task."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = f" {unit}" if unit else ""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        # Slow work counts its tenths.
        return Text(
            f"{speed:,.{0 if speed >= 10 else 1}f}{self._unit}/s" if speed else f"-{self._unit}/s",
            style="cyan",
        )


def progress(console: Console | None = None, *, unit: str = "", disable: bool = False) -> Progress:
    """A progress bar with count, rate (in ``unit`` a second), elapsed and remaining time. Use as a context manager."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console or Console(stderr=True),
        disable=disable,
    )
