"""The shard sets a run reads: their manifests, and what identifies them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from segclip.data_pipelines.config import DataConfig
from segclip.data_pipelines.manifest import MANIFEST, Manifest, ShardEntry, parse_manifest
from segclip.data_pipelines.mixture import Mixture
from segclip.data_pipelines.order import Order, epoch_positions
from segclip.data_pipelines.storage.store import read_before_fork
from segclip.data_pipelines.storage.urls import normalise_url

__all__ = ["ShardSet", "build_mixture", "read_sets"]


@dataclass(frozen=True)
class ShardSet:
    """One set.

    Attributes:
        name: its name in metrics.
        url: where it lies.
        weight: how often it is drawn from; None if the sets are joined.
        manifest: what it holds.
        manifest_sha256: SHA-256 of the manifest's file, which in turn holds that of every shard: two sets of the
            same sum are the same.
    """

    name: str
    url: str
    weight: float | None
    manifest: Manifest
    manifest_sha256: str

    @property
    def shards(self) -> tuple[ShardEntry, ...]:
        return self.manifest.shards


def read_sets(config: DataConfig) -> list[ShardSet]:
    """The sets a configuration names, read so that this process may still fork workers.

    Raises:
        ValueError: a manifest that is missing, out of reach or broken.
    """
    sets = []
    for source in config.named_sources:
        url = normalise_url(source.shards, allow_pipe=config.allow_pipe)
        content = read_before_fork(url, MANIFEST, allow_pipe=config.allow_pipe)
        manifest = parse_manifest(content, f"{url}/{MANIFEST}")
        sets.append(ShardSet(source.name, url, source.weight, manifest, hashlib.sha256(content).hexdigest()))
    return sets


def build_mixture(config: DataConfig, sets: Sequence[ShardSet], *, global_batch: int, seed: int) -> Mixture:
    """The order of a run's samples. Shards are numbered through all sets.

    Raises:
        ValueError: weights or an end of the epoch that cannot be.
    """
    counts = [[shard.count for shard in each.shards] for each in sets]
    if not config.weighted:
        counts = [[count for of_set in counts for count in of_set]]
    orders, first = [], 0
    for part, of_part in enumerate(counts):
        positions = epoch_positions(sum(of_part), global_batch, config.epoch_end)
        orders.append(
            Order(
                of_part,
                lanes=config.lanes,
                block=config.shuffle_block,
                seed=seed,
                positions=positions,
                part=part,
                first_shard=first,
            )
        )
        first += len(of_part)
    return Mixture(orders, [each.weight or 1.0 for each in sets] if config.weighted else [1.0])
