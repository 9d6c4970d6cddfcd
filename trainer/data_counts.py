"""What happened to the data, summed over all ranks and over all processes a run had: bytes, retries, cache hits, skips
by cause, samples of each set."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from segclip.data_pipelines.config import DataConfig
from segclip.data_pipelines.loader import BatchStream
from segclip.data_pipelines.quarantine import check_budget
from segclip.rank_errors import RankError
from segclip.trainer.checkpoints.train_state import TrainState
from segclip.trainer.distributed import Ranks, gathered

__all__ = ["DataCounts", "check_data", "count_data", "data_rates"]


@dataclass(frozen=True)
class DataCounts:
    """Counts by name since the run began (see ``BatchStream.counts``), and the numbers of the shards found bad."""

    counts: Counter[str] = field(default_factory=Counter)
    bad_shards: frozenset[int] = frozenset()

    @classmethod
    def of(cls, state: TrainState | None) -> DataCounts:
        """Those that a checkpoint recorded; none for a run that begins."""
        return cls() if state is None else cls(Counter(state.data_counts), frozenset(state.bad_shards))

    def as_state(self) -> dict[str, Any]:
        """The fields of ``TrainState`` that hold them."""
        return {"data_counts": dict(self.counts), "bad_shards": sorted(self.bad_shards)}

    def metrics(self) -> dict[str, float]:
        """By the names of MLflow."""
        named = {f"data/{name}": float(count) for name, count in sorted(self.counts.items())}
        return named | {"data/bad_shards": float(len(self.bad_shards))}


def count_data(stream: BatchStream, before: DataCounts) -> DataCounts:
    """Counts of all ranks, on top of those of earlier processes. Called by every rank."""
    counts, bad_shards = Counter(before.counts), set(before.bad_shards)
    for rank_counts, rank_shards in gathered((stream.counts, stream.bad_shards)):
        counts.update(rank_counts)
        bad_shards |= rank_shards
    return DataCounts(counts, frozenset(bad_shards))


def data_rates(
    stream: BatchStream, last: DataCounts, now: DataCounts, seconds: float, waited: float
) -> dict[str, float]:
    """How well the data keep up. Called by every rank.

    Args:
        stream: this rank's.
        last, now: counts at the last report and at this one.
        seconds: between the two.
        waited: seconds of these that this rank waited for batches.

    Returns:
        ``data/wait_share``: share of the time that the slowest rank waited; ``data/batches_ready`` and
        ``data/shards_ready``: fullness of the queues of the rank where they are emptiest; ``data/mb_per_second``: read
        from the stores by all ranks.
    """
    own = (waited, stream.batches_ready, stream.shards_ready)
    waits, batches, shards = zip(*gathered(own), strict=True)
    fetched = now.counts["store/bytes"] - last.counts["store/bytes"]
    return {
        "data/wait_share": max(waits) / seconds,
        "data/wait_seconds": max(waits),
        "data/batches_ready": min(batches),
        "data/shards_ready": float(min(shards)),
        "data/mb_per_second": fetched / 1e6 / seconds,
    }


def check_data(config: DataConfig, stream: BatchStream, counted: DataCounts, ranks: Ranks) -> None:
    """Stop the run, on all ranks alike, if more of its data is bad than the configuration allows.

    Raises:
        RankError: with a summary by cause.
    """
    try:
        check_budget(config, counted.counts, counted.bad_shards, samples=stream.samples, shards=stream.shards)
    except ValueError as error:
        raise RankError(str(error), is_reporter=ranks.is_first) from error
