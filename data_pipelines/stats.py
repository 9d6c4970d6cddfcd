"""What a shard set holds: sizes of shards and pictures, lengths of captions, numbers of superpixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table

from segclip.data_pipelines.captions import tokenizer
from segclip.data_pipelines.label_maps import SUPERPIXELS, decode_label_map
from segclip.data_pipelines.manifest import read_manifest
from segclip.data_pipelines.pictures import picture_extension, picture_size
from segclip.data_pipelines.shard import read_shard
from segclip.data_pipelines.storage.store import open_store

__all__ = ["Distribution", "SetStats", "set_stats", "stats_table"]

# CLIP's longest text: more tokens than these are not counted, as no network reads them.
WORDS = 77
_NAMES = (
    "shard: samples",
    "shard: bytes",
    "picture: short side",
    "picture: long side",
    "picture: bytes",
    "caption: characters",
    "caption: tokens",
    "superpixels",
)


@dataclass(frozen=True)
class Distribution:
    """How a quantity is distributed: how many values there are, their ends, and shares of them that lie below."""

    count: int
    minimum: float
    low: float
    median: float
    high: float
    maximum: float

    @classmethod
    def of(cls, values: list[int]) -> Distribution:
        """Of at least one value; ``low`` and ``high`` are the 5th and the 95th percentile."""
        return cls(len(values), *(float(each) for each in np.percentile(values, [0, 5, 50, 95, 100])))


@dataclass(frozen=True)
class SetStats:
    """What a set holds.

    Attributes:
        shards, samples, bytes: as its manifest states.
        read: samples read for the rest.
        superpixels: method of the stored maps as the manifest states it, None for none.
        distributions: by what is counted; what no sample has is left out.
        without: samples that lack something, by what they lack.
    """

    shards: int
    samples: int
    bytes: int
    read: int
    superpixels: dict[str, Any] | None
    distributions: dict[str, Distribution]
    without: dict[str, int]


def set_stats(
    url: str, *, shards: int | None = None, report: Callable[[int], None] = lambda samples: None
) -> SetStats:
    """Measure a set.

    Args:
        url: the set.
        shards: how many of its shards are read, spread evenly; None reads all.
        report: told how many more samples are read.

    Raises:
        ValueError: no set, a broken shard, a superpixel map that does not decode.
    """
    if shards is not None and shards < 1:
        raise ValueError(f"--shards is {shards}: read at least one")
    store = open_store(url)
    manifest = read_manifest(store)
    wanted = len(manifest.shards) if shards is None else min(shards, len(manifest.shards))
    chosen = np.unique(np.linspace(0, len(manifest.shards) - 1, wanted).round().astype(int))
    tally = _Tally()
    for number in chosen:
        entry = manifest.shards[number]
        shard = read_shard(store, entry)
        for sample in shard.samples:
            try:
                tally.add(shard.members(sample))
            except ValueError as error:
                raise ValueError(
                    f"sample {sample.key!r} of shard {shard.name}: {error}; build the set again"
                ) from error
        tally.values["shard: bytes"].append(entry.bytes)
        tally.values["shard: samples"].append(entry.count)
        report(entry.count)
    return SetStats(
        shards=len(manifest.shards),
        samples=manifest.samples,
        bytes=sum(shard.bytes for shard in manifest.shards),
        read=sum(tally.values["shard: samples"]),
        superpixels=manifest.superpixels.parameters() if manifest.superpixels else None,
        distributions={name: Distribution.of(held) for name, held in tally.values.items() if held},
        without=tally.without,
    )


class _Tally:
    """What has been counted so far.

    Attributes:
        values: each value by what is counted.
        without: samples that lack something, by what they lack.
    """

    def __init__(self) -> None:
        self.values: dict[str, list[int]] = {name: [] for name in _NAMES}
        self.without = {"picture": 0, "caption": 0, "superpixels": 0}
        self._tokenize = tokenizer(WORDS)

    def add(self, members: dict[str, memoryview]) -> None:
        """Count a sample, given by its members; ``ValueError`` if its picture or its map is broken."""
        values, without = self.values, self.without
        extension = picture_extension(members)
        size: tuple[int, int] | None = None
        if extension is None:
            without["picture"] += 1
        else:
            size = picture_size(members[extension])
            values["picture: short side"].append(min(size))
            values["picture: long side"].append(max(size))
            values["picture: bytes"].append(len(members[extension]))
        if SUPERPIXELS in members:
            ids = decode_label_map(members[SUPERPIXELS], size)
            values["superpixels"].append(int(np.count_nonzero(np.bincount(ids.ravel()))))
        else:
            without["superpixels"] += 1
        caption = str(members.get("txt", b""), "utf-8", "replace").strip()
        if caption:
            values["caption: characters"].append(len(caption))
            # The end token has the highest id.
            values["caption: tokens"].append(int(self._tokenize(caption).argmax()) + 1)
        else:
            without["caption"] += 1


def stats_table(stats: SetStats) -> Table:
    """The distributions of a set as a table for people."""
    table = Table(title=f"{stats.samples} samples in {stats.shards} shards, {stats.bytes / 1e6:,.1f} MB")
    table.add_column("")
    for name in ("least", "5 %", "median", "95 %", "most"):
        table.add_column(name, justify="right")
    for name, of in stats.distributions.items():
        table.add_row(
            name, *(f"{each:,.0f}" for each in (of.minimum, of.low, of.median, of.high, of.maximum))
        )
    lacking = ", ".join(f"{what} {count}" for what, count in stats.without.items() if count) or "nothing"
    method = " ".join(f"{name}={value}" for name, value in (stats.superpixels or {"none": "stored"}).items())
    table.caption = f"read: {stats.read} samples; lacking: {lacking}; superpixels: {method}"
    return table
