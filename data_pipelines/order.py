"""The order of samples: arithmetic from a position in the run's stream to a sample of a shard.

The stream is numbered 0, 1, 2, ... over the whole run; global batch ``s`` of size ``GB`` is the positions
from ``s * GB`` up to ``(s + 1) * GB - 1``. Position ``p`` belongs to epoch ``p // E``. By default ``E`` is the
number of samples ``N``: epochs follow each other without a gap, nothing is dropped or padded, and a batch may
hold the end of one epoch and the start of the next. With ``E`` cut down to whole global batches
(``epoch_end: drop``) each epoch leaves out the last ``N - E`` samples of its own permutation, others every
time; with ``E`` rounded up (``pad``) it shows its first ``E - N`` once more. Several shard sets: see ``mixture``.

Within an epoch the shards are permuted and their samples laid end to end; this sequence is cut into ``lanes``
contiguous ranges, one per lane, and position ``p`` takes the next sample of lane ``p % lanes``. A lane
shuffles within blocks of ``block`` samples. So a reader of a lane walks through few shards at a time, while a
batch mixes samples from all lanes.

What holds, for any number of ranks and workers whose product divides ``lanes``:

* each sample occurs exactly once per epoch (but for what ``drop`` and ``pad`` say);
* the content of a global batch depends on (seed, lanes, block, the manifest's counts) only, and on the size
  of the global batch under ``drop`` and ``pad``; not on ranks, workers or the step a run was resumed at;
* every rank has equally many samples in every batch, so all make the same number of steps;
* rank ``r`` of ``W`` takes the positions with ``p % W == r``, and of those, worker ``w`` of ``K`` the ones
  with ``p // W % K == w``: each worker reads whole lanes, and no lane is read by two workers.

What does not hold: changing ``lanes``, ``block``, the seed or the shard set gives another order. A shard on
the border of two lanes is read by both. Two samples further apart in an epoch's sequence than a lane's length
plus a block never trade places within a lane; shards do, every epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segclip.keyed_random import Purpose, permutation

__all__ = ["EpochEnd", "Order", "Place", "Reader", "check_split", "epoch_positions", "local_positions"]

EpochEnd = Literal["join", "drop", "pad"]
Reader = tuple[int, int]
"""What walks through blocks one after the other: a lane of an order, as number of the order and of the lane."""
# Of the number of a part within that of a shuffle, 64 bits in all: room for 2**48 blocks.
_PART_BITS = 48


class Place(NamedTuple):
    """Where the sample of a position lies: epoch, lane, number of the block in the lane, number in the
    block; and, in a mixture, the number of the order it belongs to."""

    epoch: int
    lane: int
    block: int
    slot: int
    part: int = 0

    @property
    def reader(self) -> Reader:
        """Who comes by."""
        return self.part, self.lane


class Order:
    """The order of one shard set under one seed. Holds no state but caches."""

    def __init__(
        self,
        counts: Sequence[int],
        *,
        lanes: int,
        block: int,
        seed: int,
        positions: int | None = None,
        part: int = 0,
        first_shard: int = 0,
    ) -> None:
        """
        Args:
            counts: samples of each shard, as the manifest lists them.
            lanes: number of lanes.
            block: samples a lane shuffles together; 1 keeps the order within a lane.
            seed: seed of the run.
            positions: length of an epoch (see ``epoch_positions``); all samples if None.
            part: number of this order in a mixture; orders of equal sets with other numbers differ.
            first_shard: number that the first shard has among those of all parts.
        """
        self.counts = np.asarray(counts, dtype=np.int64)
        self.samples = int(self.counts.sum())
        if self.samples == 0:
            raise ValueError("the shard set holds zero samples: build it again")
        self.positions = self.samples if positions is None else positions
        if lanes < 1 or block < 1:
            raise ValueError(f"lanes ({lanes}) and the shuffle block ({block}) must be at least 1")
        self.lanes = lanes
        self.block = block
        self.seed = seed
        self.part = part
        self.first_shard = first_shard
        # Blocks of one lane in one epoch, at most: makes every block of a run a number of its own.
        longest = -(-self.positions // lanes)
        self._blocks = -(-longest // block)
        self._epoch_table = lru_cache(maxsize=4)(self._make_epoch_table)

    def place(self, position: int) -> Place:
        """Epoch, lane, block and slot of a position."""
        epoch = position // self.positions
        lane = position % self.lanes
        turn = (position - self._first(epoch, lane)) // self.lanes
        return Place(epoch, lane, turn // self.block, turn % self.block, self.part)

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
        # A padded epoch begins again at its end; of one that drops samples, the end is never reached.
        sequence = np.arange(start, end) % self.samples
        turn = np.searchsorted(ends, sequence, side="right")
        index = sequence - (ends[turn] - self.counts[shards[turn]])
        pairs = np.stack([shards[turn] + self.first_shard, index], axis=1)
        number = self._number((epoch * self.lanes + lane) * self._blocks + block)
        return pairs[permutation(self.seed, Purpose.SHUFFLE, number, len(pairs))]

    def sample(self, position: int) -> tuple[int, int]:
        """Shard and index in the shard of a position. For tests and tools: a reader goes block by block."""
        place = self.place(position)
        shard, index = self.block_samples(place.epoch, place.lane, place.block)[place.slot]
        return int(shard), int(index)

    def _first(self, epoch: int, lane: int) -> int:
        """The first position of an epoch that falls on a lane."""
        start = epoch * self.positions
        return start + (lane - start) % self.lanes

    def _length(self, epoch: int, lane: int) -> int:
        """Number of an epoch's positions that fall on a lane."""
        return max(0, -(-((epoch + 1) * self.positions - self._first(epoch, lane)) // self.lanes))

    def _make_epoch_table(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Shards in the order of an epoch, and where each ends in the epoch's sequence."""
        shards = permutation(self.seed, Purpose.SHARD_ORDER, self._number(epoch), len(self.counts))
        return shards, np.cumsum(self.counts[shards])

    def _number(self, number: int) -> int:
        """A number of this part alone, so that no two parts are shuffled alike."""
        return number + (self.part << _PART_BITS)


def epoch_positions(samples: int, global_batch: int, end: EpochEnd) -> int:
    """Positions of an epoch of so many samples: all, or whole global batches.

    Raises:
        ValueError: ``drop`` would leave nothing.
    """
    if end == "join":
        return samples
    batches = samples // global_batch if end == "drop" else -(-samples // global_batch)
    if not batches:
        raise ValueError(
            f"data.epoch_end=drop leaves nothing: {samples} samples are fewer than a global batch of {global_batch}; "
            "use data.epoch_end=join, or a smaller train.global_batch"
        )
    return batches * global_batch


def check_split(*, shards: int, lanes: int, world_size: int, workers: int) -> None:
    """Raise ``ValueError`` unless lanes and shards can be shared out over ranks and workers."""
    readers = world_size * max(1, workers)
    which = f"{readers} readers ({world_size} ranks x {max(1, workers)} workers)"
    if shards < readers:
        fewer = "use fewer workers" if workers > 1 else "use fewer ranks"
        raise ValueError(f"{shards} shards are fewer than {which}: {fewer}, or write smaller shards")
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
