"""Run-length encoded masks against strings that COCO's own tools wrote, and against their definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from segclip.eval.datasets.rle import decode_mask, run_lengths


def ring() -> np.ndarray:
    mask = np.zeros((7, 9), bool)
    mask[1:6, 2:8] = True
    mask[3, 4:6] = False  # a hole
    return mask


def long_runs() -> np.ndarray:
    mask = np.zeros((40, 50), bool)
    mask[:, 5:45] = True
    mask[7, 20] = False
    return mask


@pytest.mark.parametrize(
    ("counts", "mask"),
    [  # written by pycocotools.mask.encode
        ("?5200MO010O013006", ring()),
        ("X6ob01Q<W6", long_runs()),
        ("0<", np.ones((3, 4), bool)),
        ("<", np.zeros((3, 4), bool)),
    ],
)
def test_strings_of_pycocotools(counts, mask) -> None:
    np.testing.assert_array_equal(decode_mask({"size": list(mask.shape), "counts": counts}), mask)


def compress(lengths: list[int]) -> str:
    """The other way round, from the format's description."""
    text = ""
    for number, length in enumerate(lengths):
        value = length - (lengths[number - 2] if number > 2 else 0)
        while True:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text += chr(48 + bits + 32 * more)
            if not more:
                break
    return text


@given(arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=12)))
def test_every_mask_comes_back(mask) -> None:
    flat = mask.flatten(order="F")
    edges = [0, *(np.flatnonzero(flat[1:] != flat[:-1]) + 1).tolist(), flat.size]
    lengths = ([0] if flat[0] else []) + np.diff(edges).tolist()
    for counts in (lengths, compress(lengths)):
        np.testing.assert_array_equal(decode_mask({"size": list(mask.shape), "counts": counts}), mask)


@given(st.lists(st.integers(0, 10**7), max_size=20))
def test_lengths_of_any_size(lengths) -> None:
    assert run_lengths(compress(lengths)) == lengths


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 1, 5, 1, 5, 5]], "'counts' .run lengths., got polygons"),
        ({"size": [3, 4]}, "a mask is 'size' and 'counts'"),
        ({"size": [3, 4], "counts": [5, 5]}, r"fill 10 pixels of 12 \(4 x 3\)"),
        ({"size": [3, 4], "counts": [13, -1]}, "fill 12 pixels of 12"),
        ({"size": [3, 4], "counts": "X"}, "ends within a length"),
        ({"size": [3, 4], "counts": "~"}, "'~' is no character of a compressed mask"),
    ],
)
def test_broken_masks(segmentation, message) -> None:
    with pytest.raises(ValueError, match=message):
        decode_mask(segmentation)
