"""Figures and their targets."""

from __future__ import annotations

import pytest

from benchmarks.report import Figure


@pytest.mark.parametrize(
    ("value", "reaches", "stays"), [(1.9, False, True), (2.0, True, True), (2.1, True, False)]
)
def test_a_target_is_reached_or_kept_to(value: float, reaches: bool, stays: bool) -> None:
    assert Figure.at_least(value, "x", 2.0, "y") == Figure(value, "x", 2.0, reaches, "y")
    assert Figure.at_most(value, "x", 2.0, "y") == Figure(value, "x", 2.0, stays, "y")


def test_without_a_target_nothing_holds_or_fails() -> None:
    assert Figure.at_least(1, "x", None) == Figure.at_most(1, "x", None) == Figure(1, "x")
