"""What happened to the data, summed over all ranks: bytes, retries, cache hits, skips by cause."""

from __future__ import annotations

from collections import Counter

import torch.distributed as dist

from segclip.data_pipelines.config import DataConfig
from segclip.data_pipelines.loader import BatchStream
from segclip.data_pipelines.quarantine import check_budget
from segclip.trainer.distributed import RankError, Ranks

__all__ = ["check_data", "data_counts"]


def data_counts(stream: BatchStream, ranks: Ranks) -> tuple[Counter[str], set[int]]:
    """Counts by name since this process started (see ``BatchStream``) and the shards found bad, of all ranks."""
    told: list[tuple[Counter[str], set[int]]] = [(Counter(), set())] * ranks.world_size
    dist.all_gather_object(told, (stream.counts, stream.bad_shards))
    counts: Counter[str] = Counter()
    bad_shards: set[int] = set()
    for rank_counts, rank_shards in told:
        counts.update(rank_counts)
        bad_shards |= rank_shards
    return counts, bad_shards


def check_data(
    config: DataConfig, stream: BatchStream, counts: Counter[str], bad_shards: set[int], ranks: Ranks
) -> None:
    """Stop the run, on all ranks alike, if more of its data is bad than the configuration allows.

    Raises:
        RankError: with a summary by cause.
    """
    try:
        check_budget(config, counts, bad_shards, samples=stream.samples, shards=stream.shards)
    except ValueError as error:
        raise RankError(str(error), is_reporter=ranks.is_first) from error
