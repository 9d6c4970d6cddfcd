"""Writing shard sets: deterministic WebDataset tars and their manifest, by several processes."""

from __future__ import annotations

import io
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

from segclip.data_pipelines.manifest import MANIFEST, Manifest, ShardEntry, describe
from segclip.data_pipelines.storage.store import open_store
from segclip.data_pipelines.superpixels import SuperpixelMethod
from segclip.data_pipelines.tar import header, trailer

__all__ = ["Sample", "pack", "write_set"]

Sample = tuple[str, Mapping[str, bytes | memoryview]]
"""Key, and content by extension."""


def pack(samples: Iterable[Sample]) -> tuple[bytes, int]:
    """A tar of samples, given as key and content by extension: its bytes and how many samples it holds.

    The same samples give the same bytes at any time on any machine.
    """
    archive = io.BytesIO()
    count = 0
    for key, members in samples:
        count += 1
        for extension, content in members.items():
            archive.write(header(f"{key}.{extension}", len(content)))
            archive.write(content)
            archive.write(bytes(-len(content) % 512))
    archive.write(trailer(archive.tell()))
    return archive.getvalue(), count


def write_set(
    url: str,
    make_shard: Callable[[int], tuple[bytes, int]],
    shards: int,
    *,
    processes: int,
    superpixels: SuperpixelMethod | None,
    source: dict[str, Any],
    report: Callable[[ShardEntry], None] = lambda entry: None,
) -> Manifest:
    """Make shards in several processes and write them with their manifest, which comes last.

    Args:
        url: folder to write to.
        make_shard: picklable function from a shard's number to its bytes and sample count.
        shards: how many.
        processes: how many processes make them; 1 makes them here.
        superpixels: method of the stored maps, for the manifest.
        source: what the set is made from, for the manifest.
        report: called after each shard.
    """
    if shards < 1:
        raise ValueError(f"{shards} shards were asked for: a set has at least one")
    entries = []
    store = open_store(url, create=True)
    for number, (content, count) in enumerate(_made(make_shard, shards, processes)):
        entry = describe(f"{number:05d}.tar", content, count)
        store.put(entry.path, content)
        entries.append(entry)
        report(entry)
    manifest = Manifest(superpixels=superpixels, source=source, shards=tuple(entries))
    store.put(MANIFEST, manifest.to_json())
    return manifest


def _made(
    make_shard: Callable[[int], tuple[bytes, int]], shards: int, processes: int
) -> Iterator[tuple[bytes, int]]:
    """Shards in order, at most two per process waiting in memory."""
    if processes <= 1:
        yield from map(make_shard, range(shards))
        return
    # Makers do not use the object store, so forking is safe here whatever this process did before.
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("fork")) as pool:
        waiting: list[Future[tuple[bytes, int]]] = []
        try:
            for number in range(shards):
                waiting.append(pool.submit(make_shard, number))
                if len(waiting) > 2 * processes:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
