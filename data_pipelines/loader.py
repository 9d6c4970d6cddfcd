"""The stream of batches: each worker walks its lanes through the shards, the training process joins their
parts."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from segclip.data_pipelines.config import DataConfig
from segclip.data_pipelines.manifest import Manifest, check_shard, read_manifest
from segclip.data_pipelines.order import Order, check_split, local_positions
from segclip.data_pipelines.samples import Batch, SampleMaker, Shard, join_batches, open_shard
from segclip.data_pipelines.store import Store, client_started, normalise_url, open_store

__all__ = ["BatchStream", "build_loader"]


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


class _ShardWindow:
    """The shards that some lanes stand in now, and, on their way, those they need next."""

    def __init__(self, store: Store, manifest: Manifest, checksum: bool) -> None:
        self._store, self._manifest, self._checksum = store, manifest, checksum
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="shards")
        self._shards: dict[int, Future[Shard]] = {}
        self._needed: dict[int, set[int]] = {}

    def need(self, lane: int, shards: set[int]) -> None:
        """State which shards a lane needs from now on; start fetching them and let go of those no lane
        needs."""
        self._needed[lane] = shards
        for number in sorted(shards - self._shards.keys()):
            self._shards[number] = self._threads.submit(self._fetch, number)
        for number in self._shards.keys() - set().union(*self._needed.values()):
            self._shards.pop(number).cancel()

    def __getitem__(self, number: int) -> Shard:
        return self._shards[number].result()

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)

    def _fetch(self, number: int) -> Shard:
        entry = self._manifest.shards[number]
        content = self._store.get(entry.path)
        check_shard(entry, content, self._store.url, checksum=self._checksum)
        shard = open_shard(f"{self._store.url}/{entry.path}", content)
        if len(shard.samples) != entry.count:
            raise ValueError(
                f"shard {shard.name} holds {len(shard.samples)} samples, the manifest states {entry.count}: "
                "rebuild the set or its manifest"
            )
        return shard


def _read(split: _Split, worker: int, workers: int) -> Iterator[Batch]:
    """The parts of all batches from ``start_step`` on that one worker provides, forever."""
    config = split.config
    order = Order(
        [shard.count for shard in split.manifest.shards],
        lanes=config.lanes,
        block=config.shuffle_block,
        seed=split.seed,
    )
    maker = SampleMaker(config, patch_size=split.patch_size, seed=split.seed)
    window = _ShardWindow(open_store(config.shards), split.manifest, config.checksum)
    cursors: dict[int, _LaneCursor] = {}
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
            samples = []
            for position in positions:
                place = order.place(position)
                cursor = cursors.setdefault(place.lane, _LaneCursor())
                if (cursor.epoch, cursor.block) != (place.epoch, place.block):
                    _advance(order, window, cursor, place.epoch, place.lane, place.block)
                shard, index = cursor.samples[place.slot]
                samples.append((window[shard], index))
            yield maker.make(samples, np.asarray(positions, dtype=np.int64))
            step += 1
    finally:
        window.close()


def _advance(
    order: Order, window: _ShardWindow, cursor: _LaneCursor, epoch: int, lane: int, block: int
) -> None:
    """Move a lane to a block, and fetch ahead for the block after it."""
    cursor.epoch, cursor.block = epoch, block
    block_samples = order.block_samples(epoch, lane, block)
    cursor.samples = list(map(tuple, block_samples.tolist()))
    following = (epoch, block + 1) if block + 1 < order.blocks_of(epoch, lane) else (epoch + 1, 0)
    needed = set(block_samples[:, 0].tolist())
    if order.blocks_of(following[0], lane):
        needed |= set(order.block_samples(following[0], lane, following[1])[:, 0].tolist())
    window.need(lane, needed)


class _Parts(IterableDataset[Any]):
    """What runs in a worker process: parts of batches, or the one-line reason why there are none."""

    def __init__(self, split: _Split) -> None:
        self.split = split

    def __iter__(self) -> Iterator[Batch | _Failure]:
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
        batch_size: samples per batch of this rank.
    """

    def __init__(self, split: _Split) -> None:
        self.samples = split.manifest.samples
        self.batch_size = split.batch_size
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
        self._parts: Iterator[Batch | _Failure] | None = None

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
        return part

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
            shard that does not match the manifest, a picture that does not decode, an empty caption.
    """
    if batch_size < 1 or start_step < 0 or not 0 <= rank < world_size:
        raise ValueError(
            f"batch_size={batch_size} must be at least 1, start_step={start_step} at least 0 and "
            f"rank={rank} below world_size={world_size}"
        )
    manifest = read_manifest(config.shards)
    check_split(
        shards=len(manifest.shards), lanes=config.lanes, world_size=world_size, workers=config.workers
    )
    SampleMaker(config, patch_size=patch_size, seed=seed)  # sizes are checked here, before any worker starts
    config = config.model_copy(update={"shards": normalise_url(config.shards)})
    return BatchStream(_Split(config, manifest, patch_size, rank, world_size, batch_size, seed, start_step))
