"""Writing label files for a converter: whole or not at all, in several processes, going on where it was stopped."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segclip.console import progress
from segclip.processes import Tick, run_tasks

__all__ = ["A_TASK", "Converted", "replace_file", "run_converter", "write_label"]

A_TASK = 64
"""Files that a process takes at a time."""

T = TypeVar("T")


@dataclass(frozen=True)
class Converted:
    """How many label files a converter wrote, and how many it found written already."""

    name: str
    written: int
    there: int


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file under another name and give it its own at the end: nobody ever finds half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(new)
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def write_label(path: Path, label_HW: NDArray[np.uint8]) -> None:
    """Write class numbers as a grey PNG."""
    replace_file(path, lambda new: Image.fromarray(label_HW).save(new, format="PNG"))


def run_converter(
    name: str,
    function: Callable[[Sequence[T], Tick], int],
    items: Sequence[T],
    target: Callable[[T], Path],
    *,
    processes: int,
    overwrite: bool,
) -> Converted:
    """Call ``function`` with some items at a time, for those whose target is not there.

    Args:
        name: shown beside the progress bar.
        function: of a module; converts its items, ticks for each and returns how many it wrote.
        items: picklable.
        target: the file an item is written to.
        processes: how many work.
        overwrite: also those whose target is there.

    Raises:
        ValueError: of ``function``; what was written until then stays.
    """
    if processes < 1:
        raise ValueError(f"--processes must be at least 1, got {processes}")
    left = [item for item in items if overwrite or not target(item).is_file()]
    tasks = [left[first : first + A_TASK] for first in range(0, len(left), A_TASK)]
    written = 0
    with progress() as bar:
        shown = bar.add_task(name, total=len(items), completed=len(items) - len(left))
        for count in run_tasks(
            function, tasks, processes=processes, tick=lambda done: bar.advance(shown, done)
        ):
            written += count
        bar.update(shown, completed=len(items))
    return Converted(name, written, len(items) - len(left))
