"""Which checkpoints are kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from segclip.trainer.checkpoints.retention import Retention, superfluous

STEPS = st.sets(st.integers(1, 400), max_size=40)
RULES = st.builds(
    Retention, keep_last=st.integers(1, 6), keep_every=st.integers(0, 50), keep_best=st.booleans()
)


@given(STEPS, st.none() | st.integers(1, 400), RULES)
def test_every_rule_keeps_its_own_and_nothing_else_stays(
    steps: set[int], best: int | None, rule: Retention
) -> None:
    deleted = superfluous(steps, best, rule)
    assert deleted == sorted(deleted)
    kept = steps - set(deleted)
    assert set(deleted) <= steps
    newest = sorted(steps, reverse=True)[: rule.keep_last]
    assert set(newest) <= kept
    if rule.keep_every:
        assert {step for step in steps if step % rule.keep_every == 0} <= kept
    if rule.keep_best and best in steps:
        assert best in kept
    for step in kept - set(newest):
        assert (rule.keep_best and step == best) or (rule.keep_every and step % rule.keep_every == 0)


@given(STEPS, st.none() | st.integers(1, 400), RULES)
def test_deleting_twice_deletes_once(steps: set[int], best: int | None, rule: Retention) -> None:
    assert superfluous(steps - set(superfluous(steps, best, rule)), best, rule) == []


@given(st.sets(st.integers(1, 400), min_size=1, max_size=40), RULES)
def test_one_at_a_time_as_in_a_run_leaves_what_is_left_at_the_end(steps: set[int], rule: Retention) -> None:
    there: set[int] = set()
    for step in sorted(steps):
        there.add(step)
        there -= set(superfluous(there, None, rule))
    assert there == steps - set(superfluous(steps, None, rule))


def test_an_example() -> None:
    rule = Retention(keep_last=2, keep_every=1000)
    assert superfluous([500, 1000, 1500, 2000, 2500, 3000, 3500], 1500, rule) == [500, 2500]
    without_best = rule.model_copy(update={"keep_best": False})
    assert superfluous([500, 1000, 1500, 2000, 2500, 3000, 3500], 1500, without_best) == [500, 1500, 2500]


@pytest.mark.parametrize("wrong", [{"keep_last": 0}, {"keep_every": -1}])
def test_numbers_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        Retention(**wrong)
