"""The shards a worker holds in memory: those its lanes stand in, and the next ones as far as memory allows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from segclip.data_pipelines.order import Reader
from segclip.data_pipelines.shard import Shard

__all__ = ["ShardWindow"]

log = logging.getLogger(__name__)
# At a time. Each is read in parallel ranges, and one is checked while the other is on its way.
FETCHES = 2


class ShardWindow:
    """Fetches shards in the background and lets go of those that no lane needs."""

    def __init__(self, fetch: Callable[[int], Shard], sizes: Sequence[int], limit: int) -> None:
        """
        Args:
            fetch: gets a shard by its number; called in threads.
            sizes: bytes of each shard.
            limit: shards are fetched ahead only while all that are held stay within so many bytes. Those that a
                lane stands in are held whatever they take.
        """
        self._fetch, self._sizes, self._limit = fetch, sizes, limit
        self._threads = ThreadPoolExecutor(max_workers=FETCHES, thread_name_prefix="shards")
        self._shards: dict[int, Future[Shard]] = {}
        self._now: dict[Reader, set[int]] = {}
        self._ahead: dict[Reader, set[int]] = {}
        self._warned = False

    @property
    def held(self) -> frozenset[int]:
        """Numbers of the shards that are here or on their way."""
        return frozenset(self._shards)

    @property
    def ready(self) -> int:
        """Shards that are here whole."""
        return sum(each.done() for each in self._shards.values())

    def need(self, reader: Reader, now: set[int], ahead: set[int]) -> None:
        """State which shards a lane stands in from now on, and which it needs after them."""
        self._now[reader], self._ahead[reader] = set(now), set(ahead)
        wanted = set().union(*self._now.values())
        later = set().union(*self._ahead.values()) - wanted
        for number in self._shards.keys() - wanted - later:
            self._shards.pop(number).cancel()
        for number in sorted(wanted):
            self._start(number)
        standing = sum(self._sizes[number] for number in wanted)
        if standing > self._limit and not self._warned:
            self._warned = True
            log.warning(
                "the shards that this worker's lanes stand in take %d MiB, above data.store.prefetch_mib = %d: "
                "nothing is fetched ahead; raise it, use more workers, or write smaller shards",
                standing >> 20,
                self._limit >> 20,
            )
        room = self._limit - sum(self._sizes[number] for number in self._shards)
        for number in sorted(later - self._shards.keys()):
            room -= self._sizes[number]
            if room < 0:
                return
            self._start(number)

    def get(self, reader: Reader, number: int) -> Shard:
        """A shard for a lane, which may stand outside it; raises what fetching it raised."""
        self._now.setdefault(reader, set()).add(number)
        self._start(number)
        return self._shards[number].result()

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)

    def _start(self, number: int) -> None:
        if number not in self._shards:
            self._shards[number] = self._threads.submit(self._fetch, number)
