"""Files and folders that are on the disk when a function returns."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["flush_folder", "write_flushed"]


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
