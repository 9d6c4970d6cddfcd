"""A shard in memory: its bytes, and where its samples lie in them."""

from __future__ import annotations

from dataclasses import dataclass

from segclip.data_pipelines.errors import REPAIR, BadShard
from segclip.data_pipelines.manifest import ShardEntry, check_shard
from segclip.data_pipelines.storage.store import Store
from segclip.data_pipelines.tar import SampleIndex, group_samples

__all__ = ["Shard", "open_shard", "open_stated", "read_shard"]


@dataclass(frozen=True)
class Shard:
    """A shard in memory: its name for messages, its bytes, and where its samples lie."""

    name: str
    content: memoryview
    samples: list[SampleIndex]

    def member(self, sample: SampleIndex, extension: str) -> memoryview:
        """The content of a sample's member, not copied."""
        start, end = sample.members[extension]
        return self.content[start:end]

    def members(self, sample: SampleIndex) -> dict[str, memoryview]:
        """All members of a sample by extension, not copied."""
        return {extension: self.member(sample, extension) for extension in sample.members}


def open_shard(name: str, content: bytes | bytearray | memoryview) -> Shard:
    """Index the samples of a shard. The content is shared, not copied.

    Raises:
        ValueError: it is no whole tar of samples.
    """
    return Shard(name, memoryview(content), group_samples(content, name))


def open_stated(entry: ShardEntry, content: memoryview, url: str) -> Shard:
    """``open_shard`` for the content of a shard that a manifest at ``url`` names.

    Raises:
        BadShard: as ``open_shard``; or it does not hold as many samples as the manifest states.
    """
    try:
        shard = open_shard(f"{url}/{entry.path}", content)
    except ValueError as error:
        raise BadShard("tar", str(error)) from error
    if len(shard.samples) != entry.count:
        raise BadShard(
            "count",
            f"shard {shard.name} holds {len(shard.samples)} samples, the manifest states {entry.count}: {REPAIR}",
        )
    return shard


def read_shard(store: Store, entry: ShardEntry) -> Shard:
    """A shard that is what the manifest states, checksum included.

    Raises:
        BadShard: it is not.
        StoreError: it is missing, or cannot be had at the moment.
    """
    content = store.get(entry.path)
    check_shard(entry, content, store.url)
    return open_stated(entry, content, store.url)
