"""Bad samples and bad shards under ``on_error: quarantine``: what takes their place, and when it is too much.

A bad sample's place in the stream is filled by another sample, chosen by a rule that knows only the order (see
``order``) and which samples are bad: the next one in the order of the same block, going round at its end; where
the whole block is bad, the one at the same number in the next block of the lane and so on round the block, then
the blocks after it, the lanes after it, and round to the lane's start. In a mixture it is always one of the same
part. ``substitutes`` is that rule.

What holds: every good sample is seen at its own place exactly once per epoch; a substitute is seen once more
for each bad sample it stands in for. Lengths of epochs and batches, and the equal number of batches on all
ranks, stay as they are, and so do all other samples, their crops and all noise, which are keyed by place. Any
number of ranks and workers and any resume sees the same substitutes, as long as the same samples are bad.

What is bad lies with the sample or shard alone: missing, cut, another length or content than the manifest
states, a picture that does not decode, an empty caption. A store that cannot be reached, that denies access or
stays busy is no such thing: it stops the run after all retries, under either policy, because the order of a
resumed run could not be the same otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from segclip.data_pipelines.config import DataConfig
from segclip.data_pipelines.errors import BadSample, BadShard
from segclip.data_pipelines.order import Order, Place, Reader
from segclip.data_pipelines.shard import Shard

__all__ = ["LIKELY_ENOUGH", "Choice", "Quarantine", "check_budget", "substitutes"]

# A share is taken of at least so many samples, or of the whole set if that is smaller: one bad sample in the
# first batch says nothing yet.
LIKELY_ENOUGH = 10_000
_SAMPLES, _SHARDS = "skips/samples/", "skips/shards/"

Reference = tuple[int, int]
"""A sample: number of its shard and index in it."""


def substitutes(order: Order, place: Place, is_bad: Callable[[int], bool]) -> Iterator[Reference]:
    """The samples that may fill a place, best first, beginning with the one it belongs to.

    Args:
        order: the order of the place's part.
        place: the place.
        is_bad: whether a shard is known to be bad; blocks that lie in such shards alone are passed over.
    """
    lane, block = place.lane, place.block
    for _ in range(sum(order.blocks_of(place.epoch, each) for each in range(order.lanes))):
        samples, shards = _block(order, place.epoch, lane, block)
        if not all(is_bad(shard) for shard in shards):
            for turn in range(len(samples)):
                yield samples[(place.slot + turn) % len(samples)]
        block += 1
        while block >= order.blocks_of(place.epoch, lane):
            lane, block = (lane + 1) % order.lanes, 0


@lru_cache(maxsize=64)
def _block(order: Order, epoch: int, lane: int, block: int) -> tuple[list[Reference], frozenset[int]]:
    """Samples of a block in the order they are taken, and the shards they lie in."""
    samples = [(shard, index) for shard, index in order.block_samples(epoch, lane, block).tolist()]
    return samples, frozenset(shard for shard, _ in samples)


@dataclass(frozen=True)
class Choice:
    """The sample that is shown at a place.

    Attributes:
        reference: which it is.
        shard: where it lies.
        skipped: name of the counter of the sample it stands in for; None if it is the place's own.
    """

    reference: Reference
    shard: Shard
    skipped: str | None = None


class Quarantine:
    """Which samples and shards one worker has found bad, and what it shows in their place.

    Attributes:
        shards: cause by number of each bad shard.
    """

    def __init__(self, orders: Sequence[Order], fetch: Callable[[Reader, int], Shard]) -> None:
        """
        Args:
            orders: the order of each part of the run.
            fetch: gets a shard for a lane by its number; raises ``BadShard``.
        """
        self._orders, self._fetch = orders, fetch
        self._samples: dict[Reference, str] = {}
        self.shards: dict[int, str] = {}
        self._messages: list[str] = []

    def choose(self, place: Place, own: Reference) -> Choice:
        """The sample that is shown at a place, as far as is known; ``reject`` it if it turns out bad.

        Args:
            place: the place.
            own: the sample the order puts there.

        Raises:
            ValueError: every sample of the epoch is bad.
        """
        if (shard := self._shard_of(own, place.reader)) is not None:
            return Choice(own, shard)
        for reference in substitutes(self._orders[place.part], place, self.shards.__contains__):
            if (shard := self._shard_of(reference, place.reader)) is not None:
                return Choice(reference, shard, self._known(own))
        raise ValueError(
            "every sample of the set is bad: build it again (segclip-shards verify shows the first fault)"
        )

    def _shard_of(self, reference: Reference, reader: Reader) -> Shard | None:
        """The shard of a sample that may be good, None if one of them is bad."""
        if self._known(reference) is not None:
            return None
        try:
            return self._fetch(reader, reference[0])
        except BadShard as error:
            self.shards[reference[0]] = error.cause
            self._messages.append(str(error))
            return None

    def reject(self, reference: Reference, error: BadSample) -> None:
        """Note that a sample is bad."""
        self._samples[reference] = error.cause
        self._messages.append(str(error))

    def take_messages(self) -> list[str]:
        """What was found bad since the last call, in words."""
        messages, self._messages = self._messages, []
        return messages

    def _known(self, reference: Reference) -> str | None:
        """The counter of a sample that is known to be bad."""
        if (cause := self.shards.get(reference[0])) is not None:
            return f"{_SHARDS}{cause}"
        if (cause := self._samples.get(reference)) is not None:
            return f"{_SAMPLES}{cause}"
        return None


def check_budget(
    config: DataConfig, counts: Mapping[str, int], bad_shards: Collection[int], *, samples: int, shards: int
) -> None:
    """Raise ``ValueError``, with a summary by cause, if more is bad than the configuration allows.

    Args:
        config: the shares allowed.
        counts: by name, of a rank or of the whole run: ``samples``, ``skips/samples/CAUSE``,
            ``skips/shards/CAUSE``.
        bad_shards: numbers of the shards found bad.
        samples, shards: how many the set has.
    """
    by_cause = {name: count for name, count in counts.items() if name.startswith((_SAMPLES, _SHARDS))}
    skipped = sum(count for name, count in by_cause.items() if name.startswith(_SAMPLES))
    served = counts.get("samples", 0)
    base = max(served, min(samples, LIKELY_ENOUGH))
    over = []
    if skipped > config.max_bad_samples * base:
        over.append(
            f"{skipped} of {base} samples are bad, more than data.max_bad_samples={config.max_bad_samples:g}"
        )
    if len(bad_shards) > config.max_bad_shards * shards:
        over.append(
            f"{len(bad_shards)} of {shards} shards are bad, more than data.max_bad_shards={config.max_bad_shards:g}"
        )
    if over:
        causes = ", ".join(
            f"{name.removeprefix('skips/')} {count}" for name, count in sorted(by_cause.items())
        )
        raise ValueError(
            f"{'; '.join(over)} (samples skipped so far, by cause: {causes}; {served} samples served). "
            "Run segclip-shards verify and repair the set, or allow more"
        )
