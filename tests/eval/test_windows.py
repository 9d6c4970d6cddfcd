from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segclip.eval.protocol import Geometry
from segclip.eval.windows import resize, resized_size, window_grid

sides = st.integers(1, 70)


def geometry(window=24, stride=24, short_side=24, **changes) -> Geometry:
    fields = {"long_side_max": None, "filter": "bilinear", "antialias": False, **changes}
    return Geometry(short_side=short_side, window=window, stride=stride, **fields)


@settings(max_examples=60, deadline=None)
@given(sides, sides, st.integers(1, 30), st.integers(1, 30))
def test_windows_cover_every_pixel_and_stay_inside(height, width, window, stride) -> None:
    stride = min(stride, window)
    count = np.zeros((height, width), int)
    found = window_grid(height, width, window, stride)
    for each in found:
        assert 0 <= each.top < each.bottom <= height
        assert 0 <= each.left < each.right <= width
        assert each.bottom - each.top == min(window, height)
        assert each.right - each.left == min(window, width)
        count[each.top : each.bottom, each.left : each.right] += 1
    assert count.min() >= 1
    assert len(set(found)) == len(found)


@settings(max_examples=60, deadline=None)
@given(sides, st.integers(1, 30), st.integers(1, 30))
def test_starts_are_multiples_of_the_stride_but_the_last_is_at_the_edge(length, window, stride) -> None:
    stride = min(stride, window)
    tops = [each.top for each in window_grid(length, 1, window, stride)]
    assert tops[:-1] == [number * stride for number in range(len(tops) - 1)]
    assert tops[-1] == max(length - window, 0)
    # None more than needed: without the last one, the end would be uncovered.
    assert len(tops) == 1 or tops[-2] + window < length


@pytest.mark.parametrize(
    ("size", "short", "longest", "expected"),
    [
        ((375, 500), 224, 2048, (224, 299)),
        ((500, 375), 224, 2048, (299, 224)),
        ((224, 224), 224, 2048, (224, 224)),
        ((100, 4000), 224, 2048, (51, 2048)),
        ((100, 4000), 224, None, (224, 8960)),
        ((1, 5000), 224, 2048, (1, 2048)),
    ],
)
def test_resized_size(size, short, longest, expected) -> None:
    assert resized_size(*size, short, longest) == expected


def test_resize_keeps_what_has_the_right_size_and_rounds_the_rest(pictures) -> None:
    same = pictures(24, 30)
    assert (resize(same, geometry()).permute(1, 2, 0).numpy() == same).all()
    flat = np.full((50, 70, 3), 77, np.uint8)
    for changes in ({}, {"filter": "bicubic"}, {"filter": "bicubic", "antialias": True}):
        out = resize(flat, geometry(**changes))
        assert out.dtype == torch.uint8
        assert out.shape == (3, 24, 34)
        assert (out == 77).all()


def test_antialias_averages_what_shrinking_skips() -> None:
    lines = np.zeros((96, 96, 3), np.uint8)
    lines[:, ::4] = 255
    plain, smooth = resize(lines, geometry()), resize(lines, geometry(antialias=True))
    assert plain.unique().tolist() == [0]
    assert (smooth.float()[:, 4:-4, 4:-4] - 64).abs().max() < 8


def test_a_picture_that_would_become_enormous_is_refused() -> None:
    """A line of pixels, without a bound on the long side: its short side is enlarged as asked, and so is the other."""
    line = np.zeros((1, 20_000, 3), np.uint8)
    with pytest.raises(ValueError, match=r"of 20000 x 1 pixels would be resized to 1600000 x 80, more than"):
        resize(line, geometry(short_side=80))
    assert resize(line, geometry(short_side=80, long_side_max=200)).shape == (3, 1, 200)
