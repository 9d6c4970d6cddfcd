"""Memory for whole objects, used again for the next one.

A shard is large and lives for a while. The kernel clears every page that it gives anew, and it gives large ones (which
NumPy asks for) only after it has found room for them: on a busy machine that took longer than to read a shard from a
store at 600 MB/s. Nobody gives buffers back by hand: one is free when its last view is gone.
"""

from __future__ import annotations

import os
import threading
import weakref
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["buffer", "fill", "read_file"]

KEPT = 2
"""Free buffers that are kept; a reader that drops a shard for the next one needs one."""
LEAST = 1 << 20
"""Smaller ones cost nothing to speak of."""
STEP = 16 << 20
"""Sizes are rounded up to these, so that shards of nearly one size share buffers. What is not touched is not there."""
_free: list[NDArray[np.uint8]] = []
# The end of a view may come anywhere, within this module too.
_lock = threading.RLock()


def buffer(size: int) -> memoryview:
    """Writable memory of ``size`` bytes, whose content is whatever was there."""
    if size < LEAST:
        return np.empty(size, dtype=np.uint8).data
    memory = _taken(size)
    if memory is None:
        memory = np.empty(-(-size // STEP) * STEP, dtype=np.uint8)
    lease = memory[:size]
    weakref.finalize(lease, _give_back, memory).atexit = False
    return lease.data


def _taken(size: int) -> NDArray[np.uint8] | None:
    """The smallest free buffer that is large enough, but no waste."""
    with _lock:
        fitting = [each for each in _free if size <= each.nbytes < 2 * size + STEP]
        if not fitting:
            return None
        best = min(fitting, key=lambda each: each.nbytes)
        _free[:] = [each for each in _free if each is not best]
        return best


def _give_back(memory: NDArray[np.uint8]) -> None:
    with _lock:
        _free.append(memory)
        del _free[:-KEPT]


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
