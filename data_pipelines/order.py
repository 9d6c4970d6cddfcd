"""The order of samples: arithmetic from a position in the run's stream to a sample of a shard.

The stream is numbered 0, 1, 2, ... over the whole run; global batch ``s`` of size ``GB`` is the positions
from ``s * GB`` up to ``(s + 1) * GB - 1``. Position ``p`` belongs to epoch ``p // N`` of ``N`` samples, so
epochs follow each other without a gap: nothing is dropped or padded, and a batch may hold the end of one
epoch and the start of the next.

Within an epoch the shards are permuted and their samples laid end to end; this sequence is cut into ``lanes``
contiguous ranges, one per lane, and position ``p`` takes the next sample of lane ``p % lanes``. A lane
shuffles within blocks of ``block`` samples. So a reader of a lane walks through few shards at a time, while a
batch mixes samples from all lanes.

What holds, for any number of ranks and workers whose product divides ``lanes``:

* each sample occurs exactly once per epoch;
* the content of a global batch depends on (seed, lanes, block, the manifest's counts) only, not on ranks,
  workers or the step a run was resumed at;
* rank ``r`` of ``W`` takes the positions with ``p % W == r``, and of those, worker ``w`` of ``K`` the ones
  with ``p // W % K == w``: each worker reads whole lanes, and no lane is read by two workers.

What does not hold: changing ``lanes``, ``block``, the seed or the shard set gives another order. A shard on
the border of two lanes is read by both. Two samples further apart in an epoch's sequence than a lane's length
plus a block never trade places within a lane; shards do, every epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from segclip.keyed_random import Purpose, permutation

__all__ = ["Order", "Place", "check_split", "local_positions"]


class Place(NamedTuple):
    """Where the sample of a position lies: epoch, lane, number of the block in the lane, number in the
    block."""

    epoch: int
    lane: int
    block: int
    slot: int


class Order:
    """The order of one shard set under one seed. Holds no state but caches."""

    def __init__(self, counts: Sequence[int], *, lanes: int, block: int, seed: int) -> None:
        """
        Args:
            counts: samples of each shard, as the manifest lists them.
            lanes: number of lanes.
            block: samples a lane shuffles together; 1 keeps the order within a lane.
            seed: seed of the run.
        """
        self.counts = np.asarray(counts, dtype=np.int64)
        self.samples = int(self.counts.sum())
        if self.samples == 0:
            raise ValueError("the shard set holds zero samples: build it again")
        if lanes < 1 or block < 1:
            raise ValueError(f"lanes ({lanes}) and the shuffle block ({block}) must be at least 1")
        self.lanes = lanes
        self.block = block
        self.seed = seed
        # Blocks of one lane in one epoch, at most: makes every block of a run a number of its own.
        longest = -(-self.samples // lanes)
        self._blocks = -(-longest // block)
        self._epoch_table = lru_cache(maxsize=4)(self._make_epoch_table)

    def place(self, position: int) -> Place:
        """Epoch, lane, block and slot of a position."""
        epoch = position // self.samples
        lane = position % self.lanes
        turn = (position - self._first(epoch, lane)) // self.lanes
        return Place(epoch, lane, turn // self.block, turn % self.block)

    def blocks_of(self, epoch: int, lane: int) -> int:
        """Number of blocks of a lane in an epoch."""
        return -(-self._length(epoch, lane) // self.block)

    def block_samples(self, epoch: int, lane: int, block: int) -> NDArray[np.int64]:
        """The samples of a block in the order they are taken: int64 [n, 2], shard and index in the shard."""
        length = self._length(epoch, lane)
        before = sum(self._length(epoch, other) for other in range(lane))
        start = before + block * self.block
        end = min(start + self.block, before + length)
        if not before <= start < end:
            raise ValueError(
                f"lane {lane} has {self.blocks_of(epoch, lane)} blocks in epoch {epoch}, not block {block}"
            )
        shards, ends = self._epoch_table(epoch)
        sequence = np.arange(start, end)
        turn = np.searchsorted(ends, sequence, side="right")
        pairs = np.stack([shards[turn], sequence - (ends[turn] - self.counts[shards[turn]])], axis=1)
        number = (epoch * self.lanes + lane) * self._blocks + block
        return pairs[permutation(self.seed, Purpose.SHUFFLE, number, len(pairs))]

    def sample(self, position: int) -> tuple[int, int]:
        """Shard and index in the shard of a position. For tests and tools: a reader goes block by block."""
        place = self.place(position)
        shard, index = self.block_samples(place.epoch, place.lane, place.block)[place.slot]
        return int(shard), int(index)

    def _first(self, epoch: int, lane: int) -> int:
        """The first position of an epoch that falls on a lane."""
        start = epoch * self.samples
        return start + (lane - start) % self.lanes

    def _length(self, epoch: int, lane: int) -> int:
        """Number of an epoch's positions that fall on a lane."""
        return max(0, -(-((epoch + 1) * self.samples - self._first(epoch, lane)) // self.lanes))

    def _make_epoch_table(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Shards in the order of an epoch, and where each ends in the epoch's sequence."""
        shards = permutation(self.seed, Purpose.SHARD_ORDER, epoch, len(self.counts))
        return shards, np.cumsum(self.counts[shards])


def check_split(*, shards: int, lanes: int, world_size: int, workers: int) -> None:
    """Raise ``ValueError`` unless lanes and shards can be shared out over ranks and workers."""
    readers = world_size * max(1, workers)
    which = f"{readers} readers ({world_size} ranks x {max(1, workers)} workers)"
    if shards < readers:
        raise ValueError(
            f"{shards} shards are fewer than {which}: use fewer workers, or write smaller shards"
        )
    if lanes % readers:
        fitting = [k for k in range(1, lanes // world_size + 1) if lanes % (k * world_size) == 0]
        advice = f"use {' or '.join(map(str, fitting))} workers" if fitting else "use another number of ranks"
        raise ValueError(
            f"data.lanes={lanes} is not divisible by {which}: "
            f"{advice}, or, for a new run, set data.lanes to a multiple of {readers}"
        )


def local_positions(
    step: int, batch_size: int, *, rank: int, world_size: int, worker: int = 0, workers: int = 1
) -> range:
    """Positions of a step that a worker of a rank provides; ``batch_size`` is that of the rank.

    The positions of rank r in a step are ``s * GB + r + W * j``; worker w has those with ``(s * B + j) % K ==
    w``.
    """
    first = step * batch_size
    offset = (worker - first) % workers
    start = (first + offset) * world_size + rank
    return range(start, (first + batch_size) * world_size, world_size * workers)
