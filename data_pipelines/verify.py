"""Comparing a whole shard set with its manifest."""

from __future__ import annotations

import logging
from collections.abc import Callable

from segclip.data_pipelines.errors import OF_THE_SHARD, StoreError
from segclip.data_pipelines.manifest import Manifest, ShardEntry, read_manifest
from segclip.data_pipelines.shard import read_shard
from segclip.data_pipelines.storage.store import Store, open_store

__all__ = ["verify_set"]

log = logging.getLogger(__name__)
# Bad shards that are named; the others are counted.
MOST_FAULTS = 20


def verify_set(url: str, report: Callable[[ShardEntry], None] = lambda entry: None) -> Manifest:
    """Read every shard of a set and compare size, SHA-256, tar structure and sample count with the manifest.

    Tars that the manifest does not name are looked for too, where the store can be listed.

    Raises:
        ValueError: the set is not what its manifest states; names up to ``MOST_FAULTS`` shards, each with its fault.
    """
    store = open_store(url)
    manifest = read_manifest(store)
    faults: list[str] = []
    for entry in manifest.shards:
        try:
            read_shard(store, entry)
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
