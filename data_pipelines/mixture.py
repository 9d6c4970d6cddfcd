"""Several shard sets in one stream, in exact proportions.

Lanes (see ``order``) take turns: position ``p`` is turn ``p // lanes`` of lane ``p % lanes``. Each lane goes round
a pattern of ``P`` turns that names the part which provides the sample, ``w_s`` of them for part ``s`` with
``sum(w_s) = P``, spread as evenly as can be; lanes start at different places of it, so a batch is mixed in nearly the
same proportions as the whole. The ``n``-th turn that a lane gives to part ``s`` is the ``n``-th turn of this lane in
the order of that part.

What holds, besides what holds for each part's own order, where an epoch is one of that part:

* of any ``P * lanes`` consecutive positions from a multiple of ``lanes`` on, exactly ``w_s * lanes`` are of part
  ``s``, and the first ``n`` positions hold at most ``lanes * (parts + 1)`` samples more or less than ``n * w_s / P``;
* with one part the stream is that of its order.

What does not hold: an epoch of one part does not end at the same position in all lanes; a lane may be ahead of another
by the turns of a pattern.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import gcd, lcm

import numpy as np

from segclip.data_pipelines.order import Order, Place

__all__ = ["LONGEST_PATTERN", "Mixture", "turns"]

LONGEST_PATTERN = 100_000
"""Turns of a pattern at most."""


def turns(weights: Sequence[float]) -> list[int]:
    """The smallest whole numbers in the proportions of some weights, each taken as the decimal number it is written as.

    Raises:
        ValueError: a weight that is not positive, or a pattern that would get too long.
    """
    if not weights or not all(0 < weight < float("inf") for weight in weights):
        raise ValueError(f"weights of shard sets must be positive numbers, not {list(weights)}")
    exact = [Fraction(repr(weight)) for weight in weights]
    # The largest number that goes into all of them without a rest.
    unit = Fraction(gcd(*(each.numerator for each in exact)), lcm(*(each.denominator for each in exact)))
    whole = [int(each / unit) for each in exact]
    if sum(whole) > LONGEST_PATTERN:
        raise ValueError(
            f"the weights {list(weights)} of shard sets are in the proportion {whole}, which takes a pattern of "
            f"{sum(whole)} turns, more than {LONGEST_PATTERN}: give them with fewer digits"
        )
    return whole


class Mixture:
    """Which part's sample stands at each position. Holds no state but the caches of its orders."""

    def __init__(self, orders: Sequence[Order], weights: Sequence[float]) -> None:
        """
        Args:
            orders: one per part, all with the same lanes; ``orders[i].part`` is ``i``.
            weights: how often each part is drawn from, in any unit.
        """
        assert [order.part for order in orders] == list(range(len(weights)))
        assert len({order.lanes for order in orders}) == 1
        self.orders = list(orders)
        self.lanes = orders[0].lanes
        shares = turns(weights)
        # The i-th of a part's w turns lies in the middle of the i-th of w equal pieces of the pattern.
        slots = [
            (Fraction(2 * i + 1, 2 * share), part) for part, share in enumerate(shares) for i in range(share)
        ]
        self._pattern = [part for _, part in sorted(slots)]
        self._shares = shares
        self._before = [
            np.concatenate([[0], np.cumsum(np.equal(self._pattern, part))]).tolist()
            for part in range(len(shares))
        ]

    def place(self, position: int) -> Place:
        """Part, epoch, lane, block and slot of a position."""
        turn, lane = divmod(position, self.lanes)
        length = len(self._pattern)
        start = lane * length // self.lanes
        part = self._pattern[(start + turn) % length]
        own_turn = self._count(part, start + turn) - self._count(part, start)
        return self.orders[part].place(own_turn * self.lanes + lane)

    def _count(self, part: int, turn: int) -> int:
        """Turns of a part before a turn of the endless pattern."""
        rounds, rest = divmod(turn, len(self._pattern))
        return rounds * self._shares[part] + int(self._before[part][rest])
