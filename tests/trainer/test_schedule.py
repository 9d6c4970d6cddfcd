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
    progress=st.floats(0, 1),
    warmup=st.floats(0, 0.9),
    kind=st.sampled_from(["cosine", "linear", "constant", "wsd"]),
)
def test_never_outside_zero_and_one(progress: float, warmup: float, kind: str) -> None:
    assert 0 <= learning_rate_factor(progress, kind, warmup) <= 1 + 1e-12  # type: ignore[arg-type]


def test_the_first_update_moves() -> None:
    assert ScheduleConfig(warmup=0.3).factor(1, 1000) > 0


def test_corners_of_warmup_stable_decay() -> None:
    def factor(progress: float) -> float:
        return learning_rate_factor(progress, "wsd", warmup=0.1, end=0.1, decay=0.25)

    assert factor(0.05) == pytest.approx(0.5)
    assert [factor(progress) for progress in (0.1, 0.5, 0.75)] == [1, 1, 1]
    assert factor(0.875) == pytest.approx(0.55)
    assert factor(1.0) == pytest.approx(0.1)


def test_the_stable_part_does_not_depend_on_the_length_of_the_run() -> None:
    """So a run can be prolonged from there; the warm-up is a share of the run and must be shortened with it."""
    short = ScheduleConfig(kind="wsd", warmup=0.1, decay=0.2)
    long = ScheduleConfig(kind="wsd", warmup=0.05, decay=0.1)
    assert [short.factor(step, 100) for step in range(1, 81)] == pytest.approx(
        [long.factor(step, 200) for step in range(1, 81)]
    )


def test_parts_longer_than_the_run_are_refused() -> None:
    with pytest.raises(ValueError, match=r"schedule\.warmup is 0\.5 and schedule\.decay 0\.6: together"):
        ScheduleConfig(kind="wsd", warmup=0.5, decay=0.6)
    ScheduleConfig(kind="cosine", warmup=0.5, decay=0.6)
