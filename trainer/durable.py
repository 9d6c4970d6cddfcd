"""Files and folders that are on the disk when a function returns, and folders that go without being taken for whole."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from segclip.trainer.checkpoint import CHECKSUMS

__all__ = ["flush_folder", "remove", "write_flushed"]


def write_flushed(path: Path, content: bytes) -> None:
    """Write a file, and wait until the disk has it."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Wait until the disk has the names in a folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(folder: Path) -> None:
    """Delete a checkpoint, its list first: what is left if this is cut short is none.

    Raises:
        OSError: it is not there, or cannot be deleted.
    """
    (folder / CHECKSUMS).unlink(missing_ok=True)
    flush_folder(folder)
    shutil.rmtree(folder)
