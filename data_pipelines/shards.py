"""Writing shard sets: deterministic WebDataset tars and their manifest, by several processes."""

from __future__ import annotations

import io
import logging
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

from segclip.data_pipelines.errors import OF_THE_SHARD, REPAIR, StoreError
from segclip.data_pipelines.manifest import (
    MANIFEST,
    Manifest,
    ShardEntry,
    check_shard,
    describe,
    read_manifest,
)
from segclip.data_pipelines.storage.store import Store, open_store
from segclip.data_pipelines.superpixels import SuperpixelMethod
from segclip.data_pipelines.tar import group_samples, header, trailer

__all__ = ["pack", "shard_name", "verify_set", "write_set"]

log = logging.getLogger(__name__)
# Bad shards that verifying names; the others are counted.
MOST_FAULTS = 20
Sample = tuple[str, Mapping[str, bytes]]


def shard_name(number: int) -> str:
    """``00000.tar``, ``00001.tar``, ..."""
    return f"{number:05d}.tar"


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
        entry = describe(shard_name(number), content, count)
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


def verify_set(url: str, report: Callable[[ShardEntry], None] = lambda entry: None) -> Manifest:
    """Read every shard of a set and compare size, SHA-256, tar structure and sample count with the manifest.

    Tars that the manifest does not name are looked for too, where the store can be listed.

    Raises:
        ValueError: the set is not what its manifest states; names up to ``MOST_FAULTS`` shards, each with its fault.
    """
    store: Store = open_store(url)
    manifest = read_manifest(store)
    faults: list[str] = []
    for entry in manifest.shards:
        try:
            _verify_shard(store, entry)
        except ValueError as error:
            # Of a store that is out of reach, every other shard would say the same.
            if isinstance(error, StoreError) and error.cause not in OF_THE_SHARD:
                raise
            faults.append(str(error))
        report(entry)
    if len(faults) > 1:
        more = f"; and {len(faults) - MOST_FAULTS} more" if len(faults) > MOST_FAULTS else ""
        told = "; ".join(faults[:MOST_FAULTS])
        raise ValueError(f"{len(faults)} of {len(manifest.shards)} shards are bad: {told}{more}")
    if faults:
        raise ValueError(faults[0])
    _refuse_unnamed(store, manifest)
    return manifest


def _verify_shard(store: Store, entry: ShardEntry) -> None:
    content = store.get(entry.path)
    check_shard(entry, content, store.url)
    held = len(group_samples(content, f"{store.url}/{entry.path}"))
    if held != entry.count:
        raise ValueError(
            f"shard {store.url}/{entry.path} holds {held} samples, the manifest states {entry.count}: {REPAIR}"
        )


def _refuse_unnamed(store: Store, manifest: Manifest) -> None:
    """Raise ``ValueError`` if there are tars that nobody reads, such as those of a part that was not merged."""
    held = store.list_if_allowed()
    if held is None:
        log.warning(
            "%s cannot be listed: whether tars lie there that the manifest does not name is not known",
            store.url,
        )
        return
    named = {entry.path for entry in manifest.shards}
    unnamed = [entry.path for entry in held if entry.path.endswith(".tar") and entry.path not in named]
    if unnamed:
        raise ValueError(
            f"{store.url} holds {len(unnamed)} tars that its manifest does not name, the first is {unnamed[0]}: nobody "
            "reads them; run segclip-shards merge if they belong to the set, or remove them"
        )
