"""Where the time of a step goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from segclip.trainer.watch import doing

__all__ = ["StepTimer"]

WAITS = {
    "features": " (all-gather of features)",
    "forward": " (all-gather of features)",
    "backward": " (all-reduce of gradients)",
    "reduce": " (all-reduce of gradients)",
    "optimizer": " (all-reduce of the gradient's norm, all-gather of weights)",
}
"""For which collectives a rank waits in a part, at most ZeRO stages."""


class StepTimer:
    """Adds up how long named parts take. On a GPU it is the device that is timed, by events: nothing waits for it until
    ``take`` is called."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time what is inside as ``name``. Parts do not contain each other."""
        doing(f"{name} of a step{WAITS.get(name, '')}")
        if self._on_gpu:
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            yield
            end.record()
            self._events.append((name, begin, end))
        else:
            start = time.perf_counter()
            yield
            self._seconds[name] += time.perf_counter() - start

    def take(self, steps: int) -> dict[str, float]:
        """Mean seconds a step of each part since the last call, as ``time/NAME``; waits for the device."""
        if self._events:
            self._events[-1][2].synchronize()
        for name, begin, end in self._events:
            self._seconds[name] += begin.elapsed_time(end) / 1000
        taken = {f"time/{name}": seconds / steps for name, seconds in sorted(self._seconds.items())}
        self._seconds.clear()
        self._events.clear()
        return taken
