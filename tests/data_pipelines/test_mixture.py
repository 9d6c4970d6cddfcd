"""Several shard sets in one stream."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from segclip.data_pipelines.mixture import Mixture, turns
from segclip.data_pipelines.order import Order, Place

sets = st.lists(
    st.tuples(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 7)), min_size=1, max_size=4
)


def mixture(counts: list[list[int]], weights: list[float], lanes: int = 6, block: int = 3) -> Mixture:
    orders = []
    for part, each in enumerate(counts):
        first = sum(map(len, counts[:part]))
        orders.append(Order(each, lanes=lanes, block=block, seed=3, part=part, first_shard=first))
    return Mixture(orders, weights)


def sample(mixed: Mixture, place: Place) -> tuple[int, int]:
    shard, index = mixed.orders[place.part].block_samples(place.epoch, place.lane, place.block)[place.slot]
    return int(shard), int(index)


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        ([1.0], [1]),
        ([0.7, 0.3], [7, 3]),
        ([3, 1], [3, 1]),
        ([0.1, 0.2, 0.3], [1, 2, 3]),
        ([2.5, 0.125], [20, 1]),
        ([1e-3, 1.0], [1, 1000]),
    ],
)
def test_weights_are_taken_as_they_are_written(weights: list[float], shares: list[int]) -> None:
    assert turns(weights) == shares


@pytest.mark.parametrize("weights", [[], [1.0, 0.0], [1.0, -2.0], [float("inf")], [float("nan")]])
def test_weights_that_are_none(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="must be positive numbers"):
        turns(weights)


def test_too_many_digits() -> None:
    with pytest.raises(
        ValueError, match=r"pattern of 10000001 turns, more than 100000: give them with fewer digits"
    ):
        turns([1.0, 1e-7])


@settings(max_examples=60, deadline=None)
@example(sets=[([1], 5), ([1], 1), ([1], 1), ([1], 1)], lanes=1, start=0)
@given(sets=sets, lanes=st.integers(1, 8), start=st.integers(0, 30))
def test_proportions_are_exact(sets: list[tuple[list[int], int]], lanes: int, start: int) -> None:
    counts, weights = [each for each, _ in sets], [weight for _, weight in sets]
    mixed = mixture(counts, list(map(float, weights)), lanes)
    shares = turns(weights)
    length = sum(shares)
    drawn = Counter(mixed.place(p).part for p in range(start * lanes, (start + length) * lanes))
    assert [drawn[part] for part in range(len(sets))] == [share * lanes for share in shares]
    running: Counter[int] = Counter()
    for position in range(3 * length * lanes):
        running[mixed.place(position).part] += 1
        for part, share in enumerate(shares):
            assert abs(running[part] - (position + 1) * share / length) <= lanes * (len(sets) + 1)


@settings(max_examples=40, deadline=None)
@given(sets=sets, lanes=st.integers(1, 6), block=st.integers(1, 5))
def test_each_sample_of_a_part_comes_once_in_each_of_its_epochs(
    sets: list[tuple[list[int], int]], lanes: int, block: int
) -> None:
    counts, weights = [each for each, _ in sets], [float(weight) for _, weight in sets]
    mixed = mixture(counts, weights, lanes, block)
    seen: dict[tuple[int, int], list[tuple[int, int]]] = {}
    wanted = {part: sum(each) for part, each in enumerate(counts)}
    # Long enough for two whole epochs of every part, and for lanes that lag behind.
    turns_needed = max(-(-3 * wanted[part] * sum(turns(weights)) // turns(weights)[part]) for part in wanted)
    for position in range(turns_needed + 2 * lanes * sum(turns(weights))):
        place = mixed.place(position)
        assert place.lane == position % lanes
        seen.setdefault((place.part, place.epoch), []).append(sample(mixed, place))
    first = 0
    for part, of_part in enumerate(counts):
        everything = {(first + shard, index) for shard, count in enumerate(of_part) for index in range(count)}
        first += len(of_part)
        for epoch in range(2):
            assert len(seen[part, epoch]) == len(everything)
            assert set(seen[part, epoch]) == everything


def test_one_part_is_its_order() -> None:
    order = Order([5, 8, 2], lanes=4, block=3, seed=3)
    mixed = mixture([[5, 8, 2]], [2.5], lanes=4)
    assert [mixed.place(p) for p in range(100)] == [order.place(p) for p in range(100)]
    assert [sample(mixed, mixed.place(p)) for p in range(60)] == [order.sample(p) for p in range(60)]


def test_a_batch_is_mixed_like_the_whole() -> None:
    """Lanes stand at different places of the pattern."""
    mixed = mixture([[50], [50]], [3.0, 1.0], lanes=24)
    for batch in range(20):
        drawn = Counter(mixed.place(p).part for p in range(24 * batch, 24 * batch + 24))
        assert drawn == {0: 18, 1: 6}


def test_equal_sets_are_shuffled_differently() -> None:
    left, right = mixture([[40, 40], [40, 40]], [1.0, 1.0], lanes=2, block=20).orders
    assert sorted(left.sample(p) for p in range(80)) == sorted(
        (shard - 2, i) for shard, i in map(right.sample, range(80))
    )
    assert not (left.block_samples(0, 0, 0)[:, 1] == right.block_samples(0, 0, 0)[:, 1]).all()
    epochs = range(8)
    firsts = [
        [order.block_samples(epoch, 0, 0)[0, 0] - order.first_shard for epoch in epochs]
        for order in (left, right)
    ]
    assert firsts[0] != firsts[1]
