"""What to say about a disk that takes nothing more."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

__all__ = ["describe_unwritten", "free_bytes"]


def free_bytes(path: str | Path) -> int | None:
    """Bytes that are free where ``path`` lies or would lie; None where that cannot be told."""
    folder = Path(os.path.realpath(path))
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def describe_unwritten(error: Exception, path: str | Path, wanted: int) -> str:
    """One line on what could not be written: the path, its bytes, those that are free, and why.

    Args:
        error: of writing; it does not name its path itself.
        path: what was to be written.
        wanted: its bytes.
    """
    free = free_bytes(path)
    room = "" if free is None else f", {free:,} are free there"
    return f"{path} cannot be written: {getattr(error, 'strerror', None) or error} ({wanted:,} bytes wanted{room})"
