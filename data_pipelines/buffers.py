"""Memory for whole objects.

A shard is large and lives for a while. Memory fresh from the kernel comes in pages of 4 KiB, each of which costs an
interrupt when it is first written: for 1 GB read that took as long as the reading itself. NumPy asks the kernel for
huge pages (2 MiB) wherever an array is large, ``bytearray`` does not, and clears its memory first besides.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

__all__ = ["buffer", "fill", "read_file"]


def buffer(size: int) -> memoryview:
    """Writable memory of ``size`` bytes, whose content is whatever was there."""
    return np.empty(size, dtype=np.uint8).data


def fill(descriptor: int, view: memoryview) -> int:
    """Fill ``view`` from an open file; returns how many bytes there were."""
    at = 0
    while at < len(view):
        count = os.readv(descriptor, [view[at:]])
        if count == 0:
            break
        at += count
    return at


def read_file(path: Path) -> memoryview:
    """A whole local file."""
    with path.open("rb", buffering=0) as file:
        content = buffer(os.fstat(file.fileno()).st_size)
        return content[: fill(file.fileno(), content)]
