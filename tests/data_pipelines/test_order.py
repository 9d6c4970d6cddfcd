from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segclip.data_pipelines.order import Order, check_split, epoch_positions, local_positions

counts_lists = st.lists(st.integers(1, 9), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(counts=counts_lists, lanes=st.integers(1, 12), block=st.integers(1, 7), seed=st.integers(0, 3))
def test_each_sample_comes_once_an_epoch(counts: list[int], lanes: int, block: int, seed: int) -> None:
    order = Order(counts, lanes=lanes, block=block, seed=seed)
    everything = {(shard, index) for shard, count in enumerate(counts) for index in range(count)}
    for epoch in range(3):
        taken = [order.sample(p) for p in range(epoch * order.samples, (epoch + 1) * order.samples)]
        assert len(taken) == len(everything)
        assert set(taken) == everything


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 9),
    world=st.integers(1, 4),
    workers=st.integers(1, 4),
    step=st.integers(0, 30),
    extra=st.integers(1, 3),
)
def test_ranks_and_workers_share_a_batch_without_gap_or_overlap(
    batch: int, world: int, workers: int, step: int, extra: int
) -> None:
    lanes = world * workers * extra
    taken: list[int] = []
    for rank in range(world):
        of_rank: list[int] = []
        for worker in range(workers):
            part = local_positions(step, batch, rank=rank, world_size=world, worker=worker, workers=workers)
            # A worker reads whole lanes: which it reads does not depend on the step.
            assert {p % lanes % (world * workers) for p in part} <= {rank + world * worker}
            of_rank += part
        assert len(of_rank) == batch
        assert all(p % world == rank for p in of_rank)
        taken += of_rank
    assert sorted(taken) == list(range(step * batch * world, (step + 1) * batch * world))


@settings(max_examples=40, deadline=None)
@given(data=st.data(), counts=counts_lists, block=st.integers(1, 7))
def test_global_batches_do_not_depend_on_the_split(
    data: st.DataObject, counts: list[int], block: int
) -> None:
    """Every split of 12 lanes and every resume point walks through the same global batches."""
    splits = [(w, k) for w in range(1, 13) for k in range(1, 13) if 12 % (w * k) == 0]
    world, workers = data.draw(st.sampled_from(splits))
    global_batch = world * data.draw(st.integers(1, 4))
    start = data.draw(st.integers(0, 5))
    order = Order(counts, lanes=12, block=block, seed=1)
    for step in range(start, start + 3):
        mine = {
            p: Order(counts, lanes=12, block=block, seed=1).sample(p)
            for rank in range(world)
            for worker in range(workers)
            for p in local_positions(
                step, global_batch // world, rank=rank, world_size=world, worker=worker, workers=workers
            )
        }
        assert mine == {p: order.sample(p) for p in range(step * global_batch, (step + 1) * global_batch)}


def test_epochs_and_seeds_differ_and_batches_mix_shards() -> None:
    order = Order([50] * 8, lanes=4, block=25, seed=1)
    first = [order.sample(p) for p in range(400)]
    assert first != [order.sample(p) for p in range(400, 800)]
    assert first != [Order([50] * 8, lanes=4, block=25, seed=2).sample(p) for p in range(400)]
    assert len({shard for shard, _ in first[:32]}) >= 4
    # Within a block the samples are shuffled, not in the order of the shard.
    lane = [index for shard, index in first[::4] if shard == first[0][0]]
    assert lane != sorted(lane)


def test_every_block_is_shuffled_in_its_own_way() -> None:
    """One shard in four lanes of 100: the places of samples within their lane, by lane and epoch, all differ."""
    order = Order([400], lanes=4, block=50, seed=1)
    patterns = {
        tuple(
            order.sample(epoch * 400 + lane + 4 * turn)[1] % 50 for turn in range(50 * block, 50 * block + 50)
        )
        for epoch in range(2)
        for lane in range(4)
        for block in range(2)
    }
    assert len(patterns) == 16


def test_a_block_of_one_keeps_the_order_within_a_lane() -> None:
    order = Order([6, 6], lanes=2, block=1, seed=0)
    lane = [order.sample(p) for p in range(0, 12, 2)]
    assert [index for _, index in lane] == sorted(index for _, index in lane)


def test_sizes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"3 shards are fewer than 4 readers \(2 ranks x 2 workers\)"):
        check_split(shards=3, lanes=4, world_size=2, workers=2)
    with pytest.raises(
        ValueError, match=r"data.lanes=24 is not divisible by 10 .* use 1 or 2 or 3 or 4 or 6 or 12 workers"
    ):
        check_split(shards=99, lanes=24, world_size=2, workers=5)
    with pytest.raises(ValueError, match="another number of ranks"):
        check_split(shards=99, lanes=24, world_size=5, workers=1)
    with pytest.raises(ValueError, match="zero samples"):
        Order([], lanes=1, block=1, seed=0)
    check_split(shards=2, lanes=24, world_size=2, workers=0)


@settings(max_examples=60, deadline=None)
@given(counts=counts_lists, lanes=st.integers(1, 6), block=st.integers(1, 7), batch=st.integers(1, 12))
def test_epochs_that_drop_or_pad_end_with_a_batch(
    counts: list[int], lanes: int, block: int, batch: int
) -> None:
    samples = sum(counts)
    everything = {(shard, index) for shard, count in enumerate(counts) for index in range(count)}

    def taken(positions: int, epoch: int) -> Counter[tuple[int, int]]:
        order = Order(counts, lanes=lanes, block=block, seed=1, positions=positions)
        return Counter(order.sample(p) for p in range(epoch * positions, (epoch + 1) * positions))

    padded = epoch_positions(samples, batch, "pad")
    assert padded % batch == 0
    assert 0 <= padded - samples < batch
    for epoch in range(2):
        shown = taken(padded, epoch)
        assert set(shown) == everything
        # As evenly as can be: a set smaller than a batch goes round several times.
        assert max(shown.values()) - min(shown.values()) <= 1
    if samples < batch:
        with pytest.raises(ValueError, match=f"{samples} samples are fewer than a global batch of {batch}"):
            epoch_positions(samples, batch, "drop")
        return
    dropped = epoch_positions(samples, batch, "drop")
    assert dropped % batch == 0
    assert 0 <= samples - dropped < batch
    for epoch in range(2):
        shown = taken(dropped, epoch)
        assert len(shown) == dropped
        assert set(shown) <= everything


def test_dropping_leaves_out_others_each_epoch() -> None:
    order = Order([10] * 5, lanes=2, block=4, seed=1, positions=epoch_positions(50, 32, "drop"))
    epochs = [{order.sample(p) for p in range(32 * epoch, 32 * epoch + 32)} for epoch in range(4)]
    assert len(set.union(*epochs)) > 45
