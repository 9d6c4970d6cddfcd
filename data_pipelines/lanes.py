"""What one worker reads: it walks its lanes through the shards, and gives its part of every batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from segclip.data_pipelines.config import DataConfig
from segclip.data_pipelines.counters import Counters
from segclip.data_pipelines.errors import BadSample
from segclip.data_pipelines.mixture import Mixture
from segclip.data_pipelines.order import Place, Reader, local_positions
from segclip.data_pipelines.quarantine import Choice, Quarantine
from segclip.data_pipelines.samples import Batch, SampleMaker
from segclip.data_pipelines.shard import Shard
from segclip.data_pipelines.shard_reader import ShardReader
from segclip.data_pipelines.shard_sets import ShardSet, build_mixture
from segclip.data_pipelines.shard_window import ShardWindow

__all__ = ["PartialBatch", "Split", "read_parts"]


@dataclass(frozen=True)
class Split:
    """What a reader needs to know: the sets, the sizes, and which part of each batch is its own."""

    config: DataConfig
    sets: list[ShardSet]
    patch_size: int
    rank: int
    world_size: int
    batch_size: int
    seed: int
    start_step: int

    def mixture(self) -> Mixture:
        """The order of the run."""
        global_batch = self.batch_size * self.world_size
        return build_mixture(self.config, self.sets, global_batch=global_batch, seed=self.seed)


@dataclass(frozen=True)
class PartialBatch:
    """What a worker sends for a step: its samples, and what happened since its last part."""

    batch: Batch
    counts: dict[str, int]
    bad_shards: frozenset[int]
    messages: list[str]
    shards_ready: int


def read_parts(split: Split, worker: int, workers: int) -> Iterator[PartialBatch]:
    """The parts of all batches from ``start_step`` on that one worker provides, forever."""
    config, counters = split.config, Counters()
    maker = SampleMaker(config, patch_size=split.patch_size, seed=split.seed)
    readers = [ShardReader(each.url, config, counters) for each in split.sets]
    shards = [(number, shard) for number, each in enumerate(split.sets) for shard in each.shards]
    window = ShardWindow(
        lambda number: readers[shards[number][0]].read(shards[number][1]),
        [shard.bytes for _, shard in shards],
        config.store.prefetch_mib << 20,
    )
    names = [split.sets[number].name for number, _ in shards]
    lanes = _Lanes(split.mixture(), window, counters, names, tolerant=config.on_error == "quarantine")
    step = split.start_step
    try:
        while True:
            positions = local_positions(
                step,
                split.batch_size,
                rank=split.rank,
                world_size=split.world_size,
                worker=worker,
                workers=workers,
            )
            batch = lanes.batch(positions, maker)
            quarantine = lanes.quarantine
            yield PartialBatch(
                batch, counters.take(), frozenset(quarantine.shards), quarantine.take_messages(), window.ready
            )
            step += 1
    finally:
        window.close()


@dataclass
class _LaneCursor:
    """The block a lane of a part stands in."""

    epoch: int = -1
    block: int = -1
    samples: list[tuple[int, int]] = field(default_factory=list)


class _Lanes:
    """A worker's walk along its lanes, those of every part of the mixture."""

    def __init__(
        self,
        mixture: Mixture,
        window: ShardWindow,
        counters: Counters,
        names: Sequence[str],
        *,
        tolerant: bool,
    ) -> None:
        """
        Args:
            mixture: the order of the run.
            window: where shards come from.
            counters: what is counted.
            names: of the set that each shard belongs to.
            tolerant: whether bad samples are replaced.
        """
        self._mixture, self._window, self._counters, self._tolerant = mixture, window, counters, tolerant
        self._names = names
        self._cursors: dict[Reader, _LaneCursor] = {}
        self.quarantine = Quarantine(mixture.orders, window.get)

    def batch(self, positions: Sequence[int], maker: SampleMaker) -> Batch:
        """The samples at some positions of the stream."""
        places = [self._mixture.place(position) for position in positions]
        owns = [self._own(place) for place in places]
        chosen = [self._choose(place, own) for place, own in zip(places, owns, strict=True)]

        def replace(b: int, error: BadSample) -> tuple[Shard, int]:
            self.quarantine.reject(chosen[b].reference, error)
            chosen[b] = self.quarantine.choose(places[b], owns[b])
            return chosen[b].shard, chosen[b].reference[1]

        batch = maker.make(
            [(each.shard, each.reference[1]) for each in chosen],
            np.asarray(positions, dtype=np.int64),
            replace if self._tolerant else None,
        )
        self._counters.add("samples", len(batch))
        for each in chosen:
            self._counters.add(f"sources/{self._names[each.reference[0]]}/samples")
            if each.skipped is not None:
                self._counters.add(each.skipped)
        return batch

    def _own(self, place: Place) -> tuple[int, int]:
        """The sample that the order puts at a place, the lane moved there."""
        cursor = self._cursors.setdefault(place.reader, _LaneCursor())
        if (cursor.epoch, cursor.block) != (place.epoch, place.block):
            self._advance(cursor, place)
        return cursor.samples[place.slot]

    def _choose(self, place: Place, own: tuple[int, int]) -> Choice:
        if self._tolerant:
            return self.quarantine.choose(place, own)
        return Choice(own, self._window.get(place.reader, own[0]))

    def _advance(self, cursor: _LaneCursor, place: Place) -> None:
        """Move a lane to a block, and fetch ahead for the block after it."""
        order, (epoch, lane, block) = self._mixture.orders[place.part], place[:3]
        cursor.epoch, cursor.block = epoch, block
        block_samples = order.block_samples(epoch, lane, block)
        cursor.samples = list(map(tuple, block_samples.tolist()))
        following = (epoch, block + 1) if block + 1 < order.blocks_of(epoch, lane) else (epoch + 1, 0)
        ahead: set[int] = set()
        if order.blocks_of(following[0], lane):
            ahead = set(order.block_samples(following[0], lane, following[1])[:, 0].tolist())
        bad = self.quarantine.shards.keys()
        self._window.need(place.reader, set(block_samples[:, 0].tolist()) - bad, ahead - bad)
