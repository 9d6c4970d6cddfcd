"""Which rank says what has failed."""

from __future__ import annotations

import pytest

from segclip.rank_errors import RankError, raise_first


def test_nothing_failed() -> None:
    raise_first([None, None], 0, None)


@pytest.mark.parametrize(
    ("problems", "message", "reporter"),
    [
        ([None, "disk full", None], "rank 1: disk full", 1),
        (["no such file", "no such file"], "no such file", 0),
        (["no such file", None], "rank 0: no such file", 0),
        ([None, "one", "another"], "rank 1: one", 1),
    ],
)
def test_the_lowest_failing_rank_says_it(problems: list[str | None], message: str, reporter: int) -> None:
    cause = ValueError("own")
    for rank in range(len(problems)):
        with pytest.raises(RankError) as caught:
            raise_first(problems, rank, cause)
        assert str(caught.value) == message
        assert caught.value.is_reporter == (rank == reporter)
        assert caught.value.__cause__ is cause
