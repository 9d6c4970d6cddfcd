"""Learning-rate factors at the corners; the whole curves are compared with the original's in tests/golden."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segclip.trainer.schedule import ScheduleConfig, learning_rate_factor


def test_corners_of_the_cosine() -> None:
    assert learning_rate_factor(0.0, warmup=0.1) == 0
    assert learning_rate_factor(0.05, warmup=0.1) == pytest.approx(0.5)
    assert learning_rate_factor(0.1, warmup=0.1) == 1
    assert learning_rate_factor(0.55, warmup=0.1) == pytest.approx(0.5)
    assert learning_rate_factor(1.0, warmup=0.1) == pytest.approx(0)
    assert learning_rate_factor(1.0, warmup=0.1, end=0.05) == pytest.approx(0.05)
    assert learning_rate_factor(0.0, warmup=0.1, start=0.2) == pytest.approx(0.2)


def test_the_originals_way_of_no_warmup_starts_at_one_half() -> None:
    assert learning_rate_factor(0.0, warmup=-1) == pytest.approx(0.5)


@given(
    progress=st.floats(0, 1), warmup=st.floats(0, 0.9), kind=st.sampled_from(["cosine", "linear", "constant"])
)
def test_never_outside_zero_and_one(progress: float, warmup: float, kind: str) -> None:
    assert 0 <= learning_rate_factor(progress, kind, warmup) <= 1 + 1e-12  # type: ignore[arg-type]


def test_the_first_update_moves() -> None:
    assert ScheduleConfig(warmup=0.3).factor(1, 1000) > 0
