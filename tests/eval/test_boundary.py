from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.ndimage import binary_erosion

from segclip.eval.boundary import boundary, boundary_width

LABELS = arrays(
    np.int64, array_shapes(min_dims=2, max_dims=2, max_side=14), elements=st.sampled_from([0, 1, 2])
)


def eroded_away(mask_HW: np.ndarray, width: int) -> np.ndarray:
    """The boundary of one mask as its authors make it: what so many erosions by 3 x 3 take away."""
    return mask_HW & ~binary_erosion(mask_HW, np.ones((3, 3)), iterations=width, border_value=0)


@settings(max_examples=60, deadline=None)
@given(LABELS, st.integers(1, 6), st.data())
def test_equals_erosion_class_by_class(label_HW, width, data) -> None:
    ignored_HW = data.draw(arrays(bool, label_HW.shape, elements=st.sampled_from([False, False, True])))
    found_HW = boundary(torch.from_numpy(label_HW), torch.from_numpy(ignored_HW), width).numpy()
    expected_HW = np.zeros_like(found_HW)
    for label in range(3):
        # An ignored pixel takes nothing away: while a class is eroded it counts as one of it.
        expected_HW |= eroded_away((label_HW == label) | ignored_HW, width) & (label_HW == label)
    assert (found_HW == (expected_HW & ~ignored_HW)).all()


def test_what_is_predicted_on_ignored_pixels_does_not_matter() -> None:
    random = np.random.default_rng(0)
    truth_HW = torch.from_numpy(random.integers(0, 3, (30, 40)))
    ignored_HW = torch.from_numpy(random.random((30, 40)) < 0.3)
    other_HW = torch.where(ignored_HW, 2, truth_HW)
    assert torch.equal(boundary(truth_HW, ignored_HW, 2), boundary(other_HW, ignored_HW, 2))


@pytest.mark.parametrize(("height", "width", "expected"), [(375, 500, 12), (1024, 2048, 46), (4, 4, 1)])
def test_width_is_two_hundredths_of_the_diagonal(height, width, expected) -> None:
    assert boundary_width(height, width) == expected
    assert boundary_width(height, width, 0.5) == max(round(0.5 * math.hypot(height, width)), 1)
