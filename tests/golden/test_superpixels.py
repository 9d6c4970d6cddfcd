"""Superpixel ids of patches by the original's rule, the mean."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.mark.parametrize("number", range(9))
def test_case(number, adapter, golden, under) -> None:
    case = under(golden("superpixel.npz"), f"case{number}/")
    found = adapter.superpixel_case(
        case["map"], case["coord_f64"], int(case["img_size"]), int(case["patch_size"])
    )
    np.testing.assert_array_equal(found, case["out"])


def test_all_golden_cases_are_tested(golden) -> None:
    assert int(golden("superpixel.npz")["n_cases"]) == 9
