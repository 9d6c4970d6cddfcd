"""Counts of what happened while data was read: bytes, retries by cause, cache hits, skips by cause."""

from __future__ import annotations

import threading
from collections import Counter

__all__ = ["Counters"]


class Counters:
    """Named numbers that any thread may add to. Names are paths such as ``store/retries/timeout``."""

    def __init__(self) -> None:
        self._numbers: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, name: str, amount: int = 1) -> None:
        with self._lock:
            self._numbers[name] += amount

    def __getitem__(self, name: str) -> int:
        with self._lock:
            return self._numbers[name]

    def take(self) -> dict[str, int]:
        """What was counted since the last call."""
        with self._lock:
            taken = dict(self._numbers)
            self._numbers.clear()
        return taken
