"""The stream of batches: each worker walks its lanes through the shards, the training process joins their
parts."""

from __future__ import annotations

import logging
import multiprocessing
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from segclip.data_pipelines.config import DataConfig
from segclip.data_pipelines.counters import Counters
from segclip.data_pipelines.errors import BadSample
from segclip.data_pipelines.manifest import Manifest, read_manifest
from segclip.data_pipelines.order import Order, Place, check_split, local_positions
from segclip.data_pipelines.quarantine import Choice, Quarantine, check_budget
from segclip.data_pipelines.samples import Batch, SampleMaker, Shard, join_batches
from segclip.data_pipelines.shard_reader import ShardReader
from segclip.data_pipelines.shard_window import ShardWindow
from segclip.data_pipelines.store import client_started, normalise_url

__all__ = ["BatchStream", "build_loader"]

log = logging.getLogger(__name__)
# Bad samples and shards that are named in the log; the rest is counted.
MESSAGES = 100


@dataclass(frozen=True)
class _Split:
    """What a reader needs to know: the set, the sizes, and which part of each batch is its own."""

    config: DataConfig
    manifest: Manifest
    patch_size: int
    rank: int
    world_size: int
    batch_size: int
    seed: int
    start_step: int


@dataclass(frozen=True)
class _Failure:
    """A user's error in a worker, sent as data: DataLoader would bury it in a stack trace."""

    message: str


@dataclass
class _LaneCursor:
    """The block a lane stands in."""

    epoch: int = -1
    block: int = -1
    samples: list[tuple[int, int]] = field(default_factory=list)


@dataclass(frozen=True)
class _Part:
    """What a worker sends for a step: its samples, and what happened since its last part."""

    batch: Batch
    counts: dict[str, int]
    bad_shards: frozenset[int]
    messages: list[str]


def _read(split: _Split, worker: int, workers: int) -> Iterator[_Part]:
    """The parts of all batches from ``start_step`` on that one worker provides, forever."""
    config, shards = split.config, split.manifest.shards
    order = Order(
        [shard.count for shard in shards], lanes=config.lanes, block=config.shuffle_block, seed=split.seed
    )
    maker = SampleMaker(config, patch_size=split.patch_size, seed=split.seed)
    counters = Counters()
    reader = ShardReader(config, counters)
    window = ShardWindow(
        lambda number: reader.read(shards[number]),
        [shard.bytes for shard in shards],
        config.store.prefetch_mib << 20,
    )
    lanes = _Lanes(order, window, counters, tolerant=config.on_error == "quarantine")
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
            yield _Part(batch, counters.take(), frozenset(quarantine.shards), quarantine.take_messages())
            step += 1
    finally:
        window.close()


class _Lanes:
    """A worker's walk along its lanes."""

    def __init__(self, order: Order, window: ShardWindow, counters: Counters, *, tolerant: bool) -> None:
        self._order, self._window, self._counters, self._tolerant = order, window, counters, tolerant
        self._cursors: dict[int, _LaneCursor] = {}
        self.quarantine = Quarantine(order, window.get)

    def batch(self, positions: Sequence[int], maker: SampleMaker) -> Batch:
        """The samples at some positions of the stream."""
        places = [self._order.place(position) for position in positions]
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
            if each.skipped is not None:
                self._counters.add(each.skipped)
        return batch

    def _own(self, place: Place) -> tuple[int, int]:
        """The sample that the order puts at a place, the lane moved there."""
        cursor = self._cursors.setdefault(place.lane, _LaneCursor())
        if (cursor.epoch, cursor.block) != (place.epoch, place.block):
            self._advance(cursor, place.epoch, place.lane, place.block)
        return cursor.samples[place.slot]

    def _choose(self, place: Place, own: tuple[int, int]) -> Choice:
        if self._tolerant:
            return self.quarantine.choose(place, own)
        return Choice(own, self._window.get(place.lane, own[0]))

    def _advance(self, cursor: _LaneCursor, epoch: int, lane: int, block: int) -> None:
        """Move a lane to a block, and fetch ahead for the block after it."""
        order = self._order
        cursor.epoch, cursor.block = epoch, block
        block_samples = order.block_samples(epoch, lane, block)
        cursor.samples = list(map(tuple, block_samples.tolist()))
        following = (epoch, block + 1) if block + 1 < order.blocks_of(epoch, lane) else (epoch + 1, 0)
        ahead: set[int] = set()
        if order.blocks_of(following[0], lane):
            ahead = set(order.block_samples(following[0], lane, following[1])[:, 0].tolist())
        bad = self.quarantine.shards.keys()
        self._window.need(lane, set(block_samples[:, 0].tolist()) - bad, ahead - bad)


class _Parts(IterableDataset[Any]):
    """What runs in a worker process: parts of batches, or the one-line reason why there are none."""

    def __init__(self, split: _Split) -> None:
        self.split = split

    def __iter__(self) -> Iterator[_Part | _Failure]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        try:
            yield from _read(self.split, worker, workers)
        except (ValueError, OSError) as error:
            yield _Failure(str(error))


class BatchStream:
    """Batches of one rank from a step on, forever. Iterate once; ``close`` ends the workers.

    Attributes:
        samples: samples of the set, which make one epoch.
        shards: shards of the set.
        batch_size: samples per batch of this rank.
        counts: what happened so far, summed over this rank's workers: ``samples`` given,
            ``store/bytes``, ``store/retries/CAUSE``, ``store/whole_bodies``, ``cache/hits``, ``cache/misses``,
            ``cache/corrupt``, ``cache/evicted``, ``cache/no_room``, ``cache/unwritten``, and
            ``skips/samples/CAUSE`` and ``skips/shards/CAUSE``: samples shown in place of one that is bad itself
            or lies in a bad shard. What never happened is not listed.
        bad_shards: numbers of the shards found bad so far.
    """

    def __init__(self, split: _Split) -> None:
        self.samples = split.manifest.samples
        self.shards = len(split.manifest.shards)
        self.batch_size = split.batch_size
        self.counts: Counter[str] = Counter()
        self.bad_shards: set[int] = set()
        self._config = split.config
        self._told = 0
        self._workers = split.config.workers
        many: dict[str, Any] = {}
        if self._workers:
            # Forking is quick, but the store's client does not survive it: where this process has used the
            # client, workers come from a clean server process instead.
            context = multiprocessing.get_context("forkserver" if client_started() else "fork")
            context.set_forkserver_preload([__name__, "open_clip.tokenizer"])
            many = {"prefetch_factor": split.config.prefetch, "multiprocessing_context": context}
        self._loader: DataLoader[Any] = DataLoader(
            _Parts(split), batch_size=None, num_workers=self._workers, collate_fn=_as_is, **many
        )
        self._parts: Iterator[_Part | _Failure] | None = None

    def __iter__(self) -> Iterator[Batch]:
        self._parts = iter(self._loader)
        while self._parts is not None:
            # DataLoader hands out one item of each worker in turn: the parts of one step.
            yield join_batches([self._next() for _ in range(max(1, self._workers))])

    def _next(self) -> Batch:
        if self._parts is None:
            raise RuntimeError("the stream of batches was closed")
        part = next(self._parts)
        if isinstance(part, _Failure):
            self.close()
            raise ValueError(part.message)
        self.counts.update(part.counts)
        self.bad_shards |= part.bad_shards
        self._tell(part.messages)
        try:
            check_budget(self._config, self.counts, self.bad_shards, samples=self.samples, shards=self.shards)
        except ValueError:
            self.close()
            raise
        return part.batch

    def _tell(self, messages: list[str]) -> None:
        for message in messages:
            self._told += 1
            if self._told <= MESSAGES:
                log.warning("quarantined: %s", message)
            elif self._told == MESSAGES + 1:
                log.warning("more is quarantined; from here on it is only counted")

    def close(self) -> None:
        """Stop the workers."""
        parts, self._parts = self._parts, None
        shutdown = getattr(parts, "_shutdown_workers", None)
        if shutdown is not None:
            shutdown()


def _as_is(part: Any) -> Any:
    return part


def build_loader(
    config: DataConfig,
    *,
    patch_size: int,
    rank: int,
    world_size: int,
    batch_size: int,
    seed: int,
    start_step: int = 0,
) -> BatchStream:
    """The stream of batches of one rank.

    The global batch of step s has ``world_size * batch_size`` samples; which, and how they are cropped,
    depends on the shard set, the seed, ``config.lanes`` and ``config.shuffle_block`` only (see ``order``). To
    resume, pass the number of steps done.

    Args:
        config: the data configuration.
        patch_size: side of a patch of the network in pixels.
        rank, world_size: this process and how many there are.
        batch_size: samples per step on this rank.
        seed: seed of the run.
        start_step: first step to give.

    Raises:
        ValueError: no data there, a broken manifest, or sizes that do not fit each other. While iterating: a
            store out of reach; a shard that does not match the manifest, a picture that does not decode, an
            empty caption, or, under ``on_error: quarantine``, more of these than the configuration allows.
    """
    if batch_size < 1 or start_step < 0 or not 0 <= rank < world_size:
        raise ValueError(
            f"batch_size={batch_size} must be at least 1, start_step={start_step} at least 0 and "
            f"rank={rank} below world_size={world_size}"
        )
    manifest = read_manifest(config.shards, allow_pipe=config.allow_pipe)
    check_split(
        shards=len(manifest.shards), lanes=config.lanes, world_size=world_size, workers=config.workers
    )
    SampleMaker(config, patch_size=patch_size, seed=seed)  # sizes are checked here, before any worker starts
    config = config.model_copy(update={"shards": normalise_url(config.shards, allow_pipe=config.allow_pipe)})
    return BatchStream(_Split(config, manifest, patch_size, rank, world_size, batch_size, seed, start_step))
