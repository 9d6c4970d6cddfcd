"""The stream of batches of one rank: workers read their parts (see ``lanes``), the training process joins them."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from segclip.console import UserError
from segclip.data_pipelines.config import DataConfig
from segclip.data_pipelines.lanes import PartialBatch, Split, read_parts
from segclip.data_pipelines.order import check_split
from segclip.data_pipelines.quarantine import check_budget
from segclip.data_pipelines.samples import Batch, SampleMaker, join_batches
from segclip.data_pipelines.shard_sets import read_sets
from segclip.data_pipelines.storage.store import client_started

__all__ = ["BatchStream", "build_loader"]

log = logging.getLogger(__name__)
# Bad samples and shards that are named in the log; the rest is counted.
MESSAGES = 100


@dataclass(frozen=True)
class _Failure:
    """A user's error in a worker, sent as data: DataLoader would bury it in a stack trace."""

    message: str


class _Parts(IterableDataset[Any]):
    """What runs in a worker process: parts of batches, or the one-line reason why there are none."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __iter__(self) -> Iterator[PartialBatch | _Failure]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        if info is not None:
            # A scheduler's signal goes to all processes of a job; what it asks for is the training process's to do.
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        try:
            yield from read_parts(self.split, worker, workers)
        except (ValueError, OSError) as error:
            yield _Failure(str(error))


class BatchStream:
    """Batches of one rank from a step on, forever. Iterate once; ``close`` ends the workers.

    Attributes:
        sets: the shard sets it reads.
        samples: samples of all sets.
        shards: shards of all sets.
        batch_size: samples per batch of this rank.
        counts: what happened so far, summed over this rank's workers: ``samples`` given,
            ``store/bytes``, ``store/retries/CAUSE``, ``store/whole_bodies``, ``cache/hits``, ``cache/misses``,
            ``cache/corrupt``, ``cache/evicted``, ``cache/no_room``, ``cache/unwritten``, ``cache/unusable``, and
            ``skips/samples/CAUSE`` and ``skips/shards/CAUSE``: samples shown in place of one that is bad itself
            or lies in a bad shard, ``sources/NAME/samples``: shown of each set. What never happened is not listed.
        bad_shards: numbers of the shards found bad so far, through all sets.
        shards_ready: shards that the workers held ready, each when it gave its last part.
    """

    def __init__(self, split: Split) -> None:
        self.sets = split.sets
        self.samples = sum(each.manifest.samples for each in split.sets)
        self.shards = sum(len(each.shards) for each in split.sets)
        self.batch_size = split.batch_size
        self.counts: Counter[str] = Counter()
        self.bad_shards: set[int] = set()
        self._ready: dict[int, int] = {}
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
        self._parts: Iterator[PartialBatch | _Failure] | None = None

    def __iter__(self) -> Iterator[Batch]:
        self._parts = self._start()
        while self._parts is not None:
            # DataLoader hands out one item of each worker in turn: the parts of one step.
            yield join_batches([self._next(worker) for worker in range(max(1, self._workers))])

    def _start(self) -> Iterator[PartialBatch | _Failure]:
        """Start the workers."""
        before = signal.getsignal(signal.SIGCHLD)
        parts = iter(self._loader)
        if threading.current_thread() is threading.main_thread():
            # DataLoader would raise the death of a worker wherever this process is, in the middle of a collective that
            # other ranks wait in. Asking for a batch tells it, too.
            signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
        return parts

    @property
    def shards_ready(self) -> int:
        return sum(self._ready.values())

    @property
    def batches_ready(self) -> float:
        """Batches that the workers have made and that nobody has taken yet; 0 without workers."""
        if self._parts is None or not self._workers:
            return 0.0
        # DataLoader tells nobody how full its queue is; what came before its turn lies beside the queue.
        waiting = self._parts._worker_result_queue.qsize()  # type: ignore[attr-defined]
        early = sum(len(task) > 1 for task in self._parts._task_info.values())  # type: ignore[attr-defined]
        return float(waiting + early) / self._workers

    def _next(self, worker: int) -> Batch:
        if self._parts is None:
            raise RuntimeError("the stream of batches was closed")
        self._check_workers()
        try:
            part = next(self._parts)
        except (RuntimeError, OSError, EOFError):
            self._check_workers()
            raise
        if isinstance(part, _Failure):
            self.close()
            raise ValueError(part.message)
        self.counts.update(part.counts)
        self.bad_shards |= part.bad_shards
        self._ready[worker] = part.shards_ready
        self._tell(part.messages)
        try:
            check_budget(self._config, self.counts, self.bad_shards, samples=self.samples, shards=self.shards)
        except ValueError:
            self.close()
            raise
        return part.batch

    def _check_workers(self) -> None:
        """Raise ``UserError`` if a worker was killed; of other failures it tells itself."""
        for number, process in enumerate(getattr(self._parts, "_workers", ())):
            if process.exitcode:
                self.close()
                raise UserError(_lost(number, process.pid, process.exitcode, self._config))

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


def _lost(worker: int, pid: int, code: int, config: DataConfig) -> str:
    """What to say about a worker that is gone, by its exit code, which is negative for signals."""
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    if -code == signal.SIGBUS:
        advice = (
            "shared memory is full: give the container more (docker run --shm-size), or lower data.prefetch"
        )
    else:
        advice = (
            "unless somebody did that by hand, memory ran out. Each worker holds up to "
            f"data.store.prefetch_mib={config.store.prefetch_mib} MiB of shards and "
            f"data.prefetch={config.prefetch} batches: lower these, use fewer workers, or ask for more memory"
        )
    return (
        f"data worker {worker} of {config.workers} (process {pid}) {how}: {advice}. "
        "The same command goes on at the next sample"
    )


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
    depends on the shard sets and their weights, the seed, ``config.lanes`` and ``config.shuffle_block`` only (see
    ``order`` and ``mixture``). To resume, pass the number of steps done.

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
        UserError: while iterating: a worker was killed.
    """
    if batch_size < 1 or start_step < 0 or not 0 <= rank < world_size:
        raise ValueError(
            f"batch_size={batch_size} must be at least 1, start_step={start_step} at least 0 and "
            f"rank={rank} below world_size={world_size}"
        )
    sets = read_sets(config)
    check_split(
        shards=sum(len(each.shards) for each in sets),
        lanes=config.lanes,
        world_size=world_size,
        workers=config.workers,
    )
    SampleMaker(config, patch_size=patch_size, seed=seed)  # sizes are checked here, before any worker starts
    split = Split(config, sets, patch_size, rank, world_size, batch_size, seed, start_step)
    split.mixture()  # and so are weights
    return BatchStream(split)
