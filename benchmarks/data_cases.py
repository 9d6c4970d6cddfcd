"""What ``benchmarks.data`` measures, each case in a process of its own.

A case takes plain values and returns plain values, so that it can be started by a command line.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from benchmarks.own_process import run_alone

__all__ = [
    "CASES",
    "check_seen",
    "end_to_end",
    "memory",
    "raw_reading",
    "run_case",
    "shaped_reading",
    "superpixel_step",
]

BATCH, PATCH = 32, 16
RATE, FIRST_BYTE = 90e6, 0.03
SIGNED_FOR = timedelta(hours=2)


def run_case(name: str, **settings: Any) -> dict[str, Any]:
    """A case in a process of its own."""
    # One thread a core: what is measured is a core.
    environment = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return run_alone("data_cases", name, json.dumps(settings), environment=environment)


def end_to_end(url: str, superpixels: str, stacks: list[str], rounds: int) -> dict[str, Any]:
    """Passes over a whole set, from opening it to the last batch, by each stack in turn, on one core.

    Args:
        url: of the set.
        superpixels: ``stored`` or ``computed``.
        stacks: of ``ours``, ``plain``, ``plain with maps``.
        rounds: timed passes of each, after one that is not.

    Returns:
        ``samples`` of a pass; ``seconds`` and ``cpu_seconds`` (of the process and of those it started) by stack,
        one number for each round.

    Raises:
        RuntimeError: a stack did not give each sample of the set exactly once.
    """
    from segclip.data_pipelines.storage.urls import normalise_url

    _one_core()
    url = normalise_url(url)
    captions = _captions(url)
    passes: dict[str, Callable[[], Iterable[list[str]]]] = {
        "ours": lambda: _ours(url, len(captions)),
        "plain": lambda: _plain(url, "none"),
        "plain with maps": lambda: _plain(url, "stored" if superpixels == "stored" else "felzenszwalb"),
    }
    seconds: dict[str, list[float]] = {stack: [] for stack in stacks}
    cpu_seconds: dict[str, list[float]] = {stack: [] for stack in stacks}
    for turn in range(rounds + 1):
        for stack in _alternating(stacks, turn):
            begin, cpu = time.perf_counter(), _cpu_seconds()
            seen = [caption for batch in passes[stack]() for caption in batch]
            if turn:
                seconds[stack].append(time.perf_counter() - begin)
                cpu_seconds[stack].append(_cpu_seconds() - cpu)
            check_seen(stack, seen, captions)
    return {"samples": len(captions), "seconds": seconds, "cpu_seconds": cpu_seconds}


def check_seen(stack: str, seen: list[str], captions: list[str]) -> None:
    """Raise ``RuntimeError`` unless a stack has given each caption of the sorted ``captions`` once."""
    if sorted(seen) != captions:
        known = len(set(seen) & set(captions))
        raise RuntimeError(
            f"{stack} gave {len(seen)} samples, {known} of the set's {len(captions)} among them"
        )


def superpixel_step(pictures: int, rounds: int) -> dict[str, Any]:
    """Seconds a picture of SLIC by fast-slic and of Felzenszwalb by scikit-image, on the same pictures, one core.

    Returns:
        By ``WIDTHxHEIGHT``: ``slic`` and ``felzenszwalb``, one number for each round. ``fast_slic``: whether it is
        installed.
    """
    import importlib.util

    import numpy as np

    from benchmarks.photo_sets import SUPERPIXELS, photos
    from segclip.data_pipelines.superpixels import SuperpixelMethod, compute_superpixels

    _one_core()
    methods = {"slic": SUPERPIXELS, "felzenszwalb": SuperpixelMethod(method="felzenszwalb")}
    whole = list(photos(pictures))
    found: dict[str, Any] = {"fast_slic": importlib.util.find_spec("fast_slic") is not None}
    for side, shown in (("341x256", whole), ("224x224", [each[:224, :224].copy() for each in whole])):
        seconds: dict[str, list[float]] = {name: [] for name in methods}
        for method in methods.values():
            compute_superpixels(shown[0], method)
        for _ in range(rounds):
            spent = dict.fromkeys(methods, 0.0)
            for picture_HW3 in shown:
                for name, method in methods.items():
                    begin = time.perf_counter()
                    labels_HW = compute_superpixels(picture_HW3, method)
                    spent[name] += time.perf_counter() - begin
                    if len(np.unique(labels_HW)) < 2:
                        raise RuntimeError(f"{name} found no regions")
            for name in methods:
                seconds[name].append(spent[name] / len(shown))
        found[side] = seconds
    return found


def raw_reading(url: str, bucket: str, sums: dict[str, str], sizes: list[int], rounds: int) -> dict[str, Any]:
    """Whole objects from S3 to memory, by each client in turn, all cores open to all.

    Args:
        url: ``s3://BUCKET/PREFIX``, which holds nothing else.
        bucket: its bucket.
        sums: SHA-256 by path.
        sizes: bytes of each, in the order of ``sums``.
        rounds: of all objects, after one in which their sums are compared.

    Returns:
        ``bytes`` of a round, ``seconds`` by client, ``missing`` clients in words.
    """
    import hashlib

    from benchmarks.s3_clients import missing_clients, readers
    from segclip.data_pipelines.storage.store import open_store

    with readers(open_store(url), bucket, list(sums), sizes) as clients:
        seconds: dict[str, list[float]] = {name: [] for name in clients}
        for turn in range(rounds + 1):
            for name in _alternating(list(clients), turn):
                begin = time.perf_counter()
                content = clients[name]()
                found: list[str] = []
                if isinstance(content, Path):
                    took = time.perf_counter() - begin
                    files = sorted(content.iterdir())
                    if turn == 0:
                        found = [hashlib.sha256(each.read_bytes()).hexdigest() for each in files]
                    for file in files:
                        file.unlink()
                elif turn == 0:
                    found = [hashlib.sha256(each).hexdigest() for each in content]
                else:
                    for each in content:
                        del each  # its reader holds it no longer either
                    took = time.perf_counter() - begin
                if turn:
                    seconds[name].append(took)
                elif found != list(sums.values()):
                    raise RuntimeError(f"{name} read something else than was written")
    return {"bytes": sum(sizes), "seconds": seconds, "missing": missing_clients()}


def shaped_reading(url: str, paths: list[str], sizes: list[int], rounds: int) -> dict[str, Any]:
    """The same behind a proxy that lets 90 MB/s a connection through and is 30 ms late: ours beside one stream.

    Returns:
        ``bytes_per_second`` by ``ours``, ``stream``, and ``unshaped``: ours through the proxy when it shapes nothing.
    """
    import obstore

    from benchmarks.shaping_proxy import shaping_proxy
    from segclip.data_pipelines.storage.store import Store, open_store

    def ours(store: Store) -> float:
        begin = time.perf_counter()
        for path, size in zip(paths, sizes, strict=True):
            if len(store.get(path, size)) != size:
                raise RuntimeError(f"{path} has another length")
        return sum(sizes) / (time.perf_counter() - begin)

    def stream(store: Store) -> float:
        begin = time.perf_counter()
        if len(obstore.get(store.client, paths[0]).bytes()) != sizes[0]:
            raise RuntimeError(f"{paths[0]} has another length")
        return sizes[0] / (time.perf_counter() - begin)

    port = int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2])
    with (
        shaping_proxy(port, rate=None, first_byte=0) as open_url,
        shaping_proxy(port, rate=RATE, first_byte=FIRST_BYTE) as shaped_url,
    ):
        os.environ["AWS_ENDPOINT_URL"] = open_url
        unshaped = open_store(url)
        os.environ["AWS_ENDPOINT_URL"] = shaped_url
        shaped = open_store(url)
        measures: dict[str, Callable[[], float]] = {
            "ours": lambda: ours(shaped),
            "stream": lambda: stream(shaped),
            "unshaped": lambda: ours(unshaped),
        }
        found: dict[str, list[float]] = {name: [] for name in measures}
        for turn in range(rounds):
            for name in _alternating(list(measures), turn):
                found[name].append(measures[name]())
    return {"bytes_per_second": found}


def memory(url: str, workers: int, epochs: list[int]) -> dict[str, Any]:
    """Resident memory of the training process and its workers, while one stream goes on for many epochs.

    Args:
        url: of a small set; its samples are a multiple of the batch of 32.
        workers: how many processes read.
        epochs: in which it is read after every batch, the last of them the end.

    Returns:
        One number for each of ``epochs``, the median over its batches: ``mib`` of main process and workers together,
        ``main_mib`` and ``worker_mib`` of the main process and of the largest worker. ``store_mib``: read in all.
    """
    from segclip.data_pipelines.config import DataConfig
    from segclip.data_pipelines.loader import build_loader
    from segclip.data_pipelines.manifest import read_manifest
    from segclip.data_pipelines.storage.config import StoreConfig

    shards = read_manifest(url).shards
    largest = max(shard.bytes for shard in shards)
    config = DataConfig(
        shards=url,
        workers=workers,
        lanes=workers,
        shuffle_block=BATCH,
        # Room for one shard, so that every epoch reads the set again.
        store=StoreConfig(prefetch_mib=-(-largest // 2**20)),
    )
    stream = build_loader(config, patch_size=PATCH, rank=0, world_size=1, batch_size=BATCH, seed=0)
    per_epoch, rest = divmod(stream.samples, BATCH)
    if rest:
        raise ValueError(f"{stream.samples} samples are no multiple of {BATCH}")
    found: dict[int, list[list[float]]] = {epoch: [] for epoch in epochs}
    for step, _ in enumerate(stream):
        epoch = step // per_epoch + 1
        if epoch > max(epochs):
            break
        if epoch in found:
            pids = [os.getpid(), *(each.pid for each in multiprocessing.active_children() if each.pid)]
            if len(pids) != 1 + workers:
                raise RuntimeError(f"{len(pids) - 1} workers are running, {workers} were asked for")
            found[epoch].append([_resident_mib(pid) for pid in pids])
    stream.close()
    if stream.counts["store/bytes"] < max(epochs) / 2 * sum(shard.bytes for shard in shards):
        raise RuntimeError(
            f"{stream.counts['store/bytes']} bytes were read in {max(epochs)} epochs: the set was kept"
        )
    return {
        "mib": [statistics.median(map(sum, each)) for each in found.values()],
        "main_mib": [statistics.median(row[0] for row in each) for each in found.values()],
        "worker_mib": [statistics.median(max(row[1:]) for row in each) for each in found.values()],
        "store_mib": stream.counts["store/bytes"] / 2**20,
    }


def _ours(url: str, samples: int) -> Iterator[list[str]]:
    from benchmarks.photo_sets import SUPERPIXELS
    from segclip.data_pipelines.config import DataConfig, SuperpixelConfig
    from segclip.data_pipelines.loader import build_loader

    config = DataConfig(
        shards=url,
        workers=0,
        # As many samples are shuffled together as by the plain stack.
        lanes=2,
        shuffle_block=500,
        superpixels=SuperpixelConfig(segments=SUPERPIXELS.segments),
    )
    if samples % BATCH:
        raise ValueError(
            f"{samples} samples are no multiple of {BATCH}: the last batch would begin the next epoch"
        )
    stream = build_loader(config, patch_size=PATCH, rank=0, world_size=1, batch_size=BATCH, seed=0)
    try:
        for number, batch in enumerate(stream, 1):
            yield batch.captions
            if number * BATCH == samples:
                return
    finally:
        stream.close()


def _plain(url: str, superpixels: Any) -> Iterator[list[str]]:
    import shlex

    import obstore

    from benchmarks.plain_stack import pipe_curl, plain_stream
    from segclip.data_pipelines.manifest import read_manifest
    from segclip.data_pipelines.storage.store import open_store
    from segclip.data_pipelines.storage.urls import local_path

    store = open_store(url)
    paths = [shard.path for shard in read_manifest(store).shards]
    folder = local_path(url)
    urls = (
        [f"pipe:cat {shlex.quote(str(folder / path))}" for path in paths]
        if folder is not None
        else [pipe_curl(obstore.sign(store.client, "GET", path, expires_in=SIGNED_FOR)) for path in paths]
    )
    for batch in plain_stream(urls, batch_size=BATCH, superpixels=superpixels, patch_size=PATCH):
        yield list(batch[2])


def _captions(url: str) -> list[str]:
    """All captions of a set, sorted."""
    from segclip.data_pipelines.manifest import read_manifest
    from segclip.data_pipelines.storage.store import open_store
    from segclip.data_pipelines.tar import group_samples

    store = open_store(url)
    found = []
    for shard in read_manifest(store).shards:
        content = store.get(shard.path, shard.bytes)
        for sample in group_samples(content, shard.path):
            start, end = sample.members["txt"]
            found.append(bytes(content[start:end]).decode())
    return sorted(found)


def _alternating(names: list[str], turn: int) -> list[str]:
    """Another order in every round, so that none always follows the same one."""
    start = turn % len(names)
    turned = names[start:] + names[:start]
    return turned if turn % 2 else turned[::-1]


def _one_core() -> None:
    """Keep this process, its threads and what it starts on one core."""
    import torch

    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def _cpu_seconds() -> float:
    """CPU time of this process and of those it started that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _resident_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(status.split("VmRSS:")[1].split()[0]) / 2**10


CASES: dict[str, Callable[..., dict[str, Any]]] = {
    each.__name__: each for each in (end_to_end, superpixel_step, raw_reading, shaped_reading, memory)
}

if __name__ == "__main__":
    print(json.dumps(CASES[sys.argv[1]](**json.loads(sys.argv[2]))))
