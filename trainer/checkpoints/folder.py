"""The folder of a run's checkpoints: names and places, which are published, and how one is put away."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from segclip.trainer.checkpoints.durable import flush_folder

__all__ = [
    "CHECKSUMS",
    "DAMAGED",
    "STEP_NAME",
    "WRITING",
    "checkpoint_folder",
    "complete",
    "find_latest",
    "named_steps",
    "remove",
    "remove_unfinished",
    "set_aside",
    "step_name",
    "step_of",
]

CHECKSUMS = "checksums.json"
"""Lists the files of a checkpoint with their sha256; without it a folder is no checkpoint."""
WRITING = ".writing-"
"""What the names of folders begin with that are not published yet."""
DAMAGED = ".damaged-"
"""What the names of folders begin with that were published, and are no longer as they were written."""
STEP_NAME = re.compile(r"step-(\d{8})")


def checkpoint_folder(run_dir: str | Path) -> Path:
    return Path(run_dir) / "checkpoints"


def step_name(step: int) -> str:
    """``1234`` -> ``step-00001234``, the name of its checkpoint."""
    return f"step-{step:08d}"


def step_of(checkpoint: Path) -> int:
    """Steps made when a checkpoint was written, from its name."""
    return int(checkpoint.name.removeprefix("step-"))


def named_steps(root: Path) -> list[Path]:
    """What bears the name of a checkpoint in a folder of them, whole or not, by rising step."""
    return sorted(p for p in root.iterdir() if STEP_NAME.fullmatch(p.name)) if root.is_dir() else []


def complete(root: Path) -> list[Path]:
    """Published checkpoints in a folder of them, by rising step."""
    return [folder for folder in named_steps(root) if (folder / CHECKSUMS).is_file()]


def find_latest(run_dir: str | Path) -> Path | None:
    """The newest published checkpoint, or None if the run has none.

    The file ``latest`` is for people; the folders themselves decide, since a folder carries its final name only once
    it is whole.
    """
    published = complete(checkpoint_folder(run_dir))
    return published[-1] if published else None


def remove(folder: Path) -> None:
    """Delete a checkpoint, its list first: what is left if this is cut short is none.

    Raises:
        OSError: it is not there, or cannot be deleted.
    """
    (folder / CHECKSUMS).unlink(missing_ok=True)
    flush_folder(folder)
    shutil.rmtree(folder)


def remove_unfinished(root: Path) -> None:
    """Remove what was begun in a folder of checkpoints and never published."""
    for folder in root.glob(f"{WRITING}*"):
        shutil.rmtree(folder)


def set_aside(damaged: Iterable[Path]) -> None:
    """Give damaged checkpoints a name that is none's."""
    for folder in damaged:
        aside = folder.with_name(f"{DAMAGED}{folder.name}")
        if aside.exists():
            shutil.rmtree(aside)
        folder.rename(aside)
