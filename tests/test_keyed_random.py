"""One generator, three ways to call it: known answers, agreement, independence of how a batch is split."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segclip.keyed_random import (
    Purpose,
    gumbel,
    permutation,
    philox_numpy,
    philox_torch,
    uniform,
    uniform_numpy,
)

# Known-answer vectors of Random123 for philox4x32-10: (counter, key, result).
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def test_known_answers() -> None:
    for counter, key, expected in KNOWN:
        seed = key[0] | key[1] << 32
        words = philox_torch(seed, tuple(torch.tensor([c]) for c in counter))  # type: ignore[arg-type]
        assert tuple(int(w) for w in words) == expected
        arrays = philox_numpy(seed, tuple(np.array([c], dtype=np.uint64) for c in counter))
        assert tuple(int(a[0]) for a in arrays) == expected


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 2**63 - 1),
    positions=st.lists(st.integers(0, 2**40), min_size=1, max_size=5),
    count=st.integers(1, 9),
    purpose=st.sampled_from(Purpose),
)
def test_numpy_and_torch_agree_bit_for_bit(
    seed: int, positions: list[int], count: int, purpose: Purpose
) -> None:
    ours = uniform(seed, purpose, torch.tensor(positions), count)
    theirs = uniform_numpy(seed, purpose, np.array(positions), count)
    assert ours.dtype == torch.float32
    assert np.array_equal(ours.numpy(), theirs)
    assert (theirs > 0).all()
    assert (theirs < 1).all()


@settings(deadline=None, max_examples=20)
@given(cut=st.integers(1, 7), count=st.integers(1, 20))
def test_a_draw_depends_only_on_its_own_position(cut: int, count: int) -> None:
    positions = torch.arange(8) * 1000
    whole = uniform(7, Purpose.MASK, positions, count)
    parts = torch.cat(
        [uniform(7, Purpose.MASK, positions[:cut], count), uniform(7, Purpose.MASK, positions[cut:], count)]
    )
    assert torch.equal(whole, parts)
    # Nor on how many numbers are asked for.
    assert torch.equal(whole, uniform(7, Purpose.MASK, positions, count + 5)[:, :count])


def test_seeds_purposes_and_positions_give_other_numbers() -> None:
    base = uniform(0, Purpose.MASK, torch.arange(2), 64)
    assert not torch.equal(base, uniform(1, Purpose.MASK, torch.arange(2), 64))
    assert not torch.equal(base, uniform(2**32, Purpose.MASK, torch.arange(2), 64))
    assert not torch.equal(base, uniform(0, Purpose.CROP, torch.arange(2), 64))
    assert not torch.equal(base[0], base[1])
    assert not torch.equal(base, uniform(0, Purpose.MASK, torch.arange(2) + 2**32, 64))


def test_distributions() -> None:
    draws = uniform(3, Purpose.SCENE, torch.arange(200), 500)
    assert abs(draws.mean() - 0.5) < 0.005
    assert abs(draws.var() - 1 / 12) < 0.002
    noise = gumbel(3, Purpose.GUMBEL_MAIN, torch.arange(200), 500)
    assert abs(noise.mean() - 0.5772) < 0.02
    assert abs(noise.var() - torch.pi**2 / 6) < 0.05


def test_permutation() -> None:
    order = permutation(0, Purpose.SHUFFLE, 5, 1000)
    assert sorted(order.tolist()) == list(range(1000))
    assert not np.array_equal(order, permutation(0, Purpose.SHUFFLE, 6, 1000))
    assert permutation(0, Purpose.SHUFFLE, 0, 1).tolist() == [0]
