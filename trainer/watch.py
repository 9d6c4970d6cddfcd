"""A rank that no longer answers is named, and the others do not wait for it for ever.

A process that is stopped, swapped out or cut off leaves the others in a collective, which tells nobody who is missing.
So each rank sends a beat through the store of the rendezvous, with what it is doing; the first rank looks at all beats,
the others at the first rank's and at what it has found.
"""

from __future__ import annotations

import datetime
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore

from segclip.rank_errors import LOST

__all__ = ["Watch", "doing"]


@dataclass
class _Now:
    doing: str = "starting"
    since: float = field(default_factory=time.monotonic)


_now = _Now()


def doing(what: str) -> None:
    """Note what this process does from now on, which is what it is found in when it, or another, hangs."""
    _now.doing, _now.since = what, time.monotonic()


class Watch:
    """Beats of this rank, and a look at those of others, on a thread that goes on until ``close``.

    Args:
        rank: this process.
        world_size: number of all.
        seconds: a rank without a beat for so long is lost, and this process ends with ``LOST``; 0 watches nothing.
        stalled: seconds after which the first rank says which ranks are waiting for data, and again twice as late.
        end: called with the message when a rank is lost; prints it and ends this process unless given.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        seconds: float,
        *,
        stalled: float = 30.0,
        end: Callable[[str], None] | None = None,
    ) -> None:
        self._rank, self._seconds, self._stalled = rank, seconds, stalled
        self._end = end or self._leave
        self._period = seconds / 10
        self._over = threading.Event()
        self._others = [*range(1, world_size)] if rank == 0 else [0]
        """Whose beats this rank looks at."""
        self._seen = {other: ("{}", time.monotonic()) for other in self._others}
        """Their last beats, and when they came."""
        self._told: dict[int, float] = {}
        self._found: str | None = None
        """What the first rank has found, for the others."""
        # Two threads: an answer of the store may never come, when the first rank holds it and is the one that is lost.
        self._threads = [
            threading.Thread(target=work, name="watch", daemon=True) for work in (self._talk, self._judge)
        ]
        if seconds > 0:
            self._store: Any = self._connect() if world_size > 1 else None
            for thread in self._threads:
                thread.start()

    def close(self) -> None:
        """Stop watching; to be called when all ranks are done, since the others would miss this one's beats."""
        self._over.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(2 * self._period)  # it may wait for an answer that does not come

    def _connect(self) -> Any:
        """A connection of its own: the main thread may wait for an answer on the other."""
        # Shorter than what makes a rank lost, or the loss of the first rank, which may hold the store, shows late.
        wait = datetime.timedelta(seconds=max(1.0, self._seconds / 4))
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(address, port, None, False, wait, wait_for_workers=False)
        return PrefixStore(f"segclip/beats/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)

    def _talk(self) -> None:
        count = 0
        while not self._over.wait(self._period):
            count += 1
            try:
                self._beat(count)
                self._look()
                if self._rank == 0 and self._found is not None:
                    self._store.set("lost", self._found)
            except (dist.DistError, RuntimeError):
                # No answer of the store shows as a first rank without a beat.
                continue

    def _judge(self) -> None:
        looked = time.monotonic()
        while not self._over.wait(self._period / 2):
            slept, looked = time.monotonic() - looked, time.monotonic()
            if slept > 3 * self._period:
                # This process was held up itself, perhaps with all others: a job that was suspended, a paused machine.
                self._seen = {rank: (beat, looked) for rank, (beat, _) in self._seen.items()}
            self._found = self._found or self._lost()
            if self._found is not None:
                self._end(self._found)
                return

    def _beat(self, count: int) -> None:
        held = round(time.monotonic() - _now.since)
        own = {
            "count": count,
            "doing": _now.doing,
            "held": held,
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        if self._rank == 0:
            self._tell_stall(0, own)
        if self._store is not None:
            self._store.set(str(self._rank), json.dumps(own))

    def _look(self) -> None:
        if self._store is None:
            return
        known = [rank for rank in self._others if self._store.check([str(rank)])]
        beats = self._store.multi_get([str(rank) for rank in known]) if known else []
        for rank, value in zip(known, beats, strict=True):
            beat = value.decode()
            if self._seen.get(rank, ("",))[0] != beat:
                self._seen[rank] = (beat, time.monotonic())
                if self._rank == 0:
                    self._tell_stall(rank, json.loads(beat))
        if self._rank != 0 and self._store.check(["lost"]):
            self._found = self._store.get("lost").decode()

    def _tell_stall(self, rank: int, beat: dict[str, Any]) -> None:
        """Say that ranks are waiting for data: the others wait for them, and nothing else would be seen."""
        if "next batch" not in beat["doing"] or beat["held"] < self._stalled:
            self._told.pop(rank, None)
        elif beat["held"] >= 2 * self._told.get(rank, 0.0):
            self._told[rank] = beat["held"]
            print(f"rank {rank} has waited {beat['held']} s for data", file=sys.stderr, flush=True)

    def _lost(self) -> str | None:
        now = time.monotonic()
        for rank, (beat, since) in self._seen.items():
            if now - since > self._seconds:
                last = json.loads(beat)
                where = f" ({last['host']}, process {last['pid']})" if last else ""
                was = f"; its last word was that it is in: {last['doing']}" if last else ""
                return (
                    f"rank {rank}{where} has not answered for {now - since:.0f} s{was}. The others wait for it in: "
                    f"{_now.doing}. All ranks stop; the same command goes on after the last checkpoint"
                )
        return None

    def _leave(self, message: str) -> None:
        if self._rank == 0 or (self._rank == 1 and message.startswith("rank 0 ")):
            print(f"[rank {self._rank}] error: {message}", file=sys.stderr, flush=True)
        if self._rank == 0:
            # The others read it in the store, which may be this process's.
            time.sleep(3 * self._period)
        os._exit(LOST)
