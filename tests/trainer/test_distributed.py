"""Two real ranks: an error on one of them is raised on both, and only one is to report it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
Seen = tuple[list[dict[str, object]], list[str], list[int]]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """What each rank printed, what it said on stderr, and its exit code."""
    meeting = tmp_path_factory.mktemp("ranks") / "meeting"
    script = Path(__file__).with_name("errors_of_ranks.py")
    ranks = [
        subprocess.Popen(
            [sys.executable, script, str(rank), meeting],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [rank.communicate(timeout=300) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    printed = [dict[str, object]() for _ in ranks]
    for values, (output, _) in zip(printed, outputs, strict=True):
        for line in output.splitlines():
            values |= json.loads(line)
    return printed, [errors for _, errors in outputs], [rank.returncode for rank in ranks]


def test_work_of_the_first_rank_is_done_there_alone(seen: Seen) -> None:
    assert [values["work"] for values in seen[0]] == [[0], []]


def test_an_error_of_the_first_rank_is_raised_on_all(seen: Seen) -> None:
    """The first one reports it, and keeps where it came from for the stack trace."""
    message = "steps is 0: give more"
    assert [values["first"] for values in seen[0]] == [
        [message, True, "ValueError"],
        [message, False, "NoneType"],
    ]


def test_an_error_of_any_rank_is_raised_on_all(seen: Seen) -> None:
    message = "rank 1: FileNotFoundError: [Errno 2] no file: 'a.tar'"
    assert [values["second"] for values in seen[0]] == [
        [message, False, "NoneType"],
        [message, True, "FileNotFoundError"],
    ]


def test_what_all_ranks_say_is_reported_once(seen: Seen) -> None:
    assert [values["both"] for values in seen[0]] == [
        ["no data", True, "ValueError"],
        ["no data", False, "ValueError"],
    ]


def test_ranks_are_in_step_after_an_error(seen: Seen) -> None:
    assert [values["sum"] for values in seen[0]] == [3, 3]


def test_a_fault_of_ours_ends_the_first_rank_and_the_others_notice(seen: Seen) -> None:
    printed, errors, codes = seen
    assert "KeyError: 'a fault'" in errors[0]
    assert codes[0] == 1
    assert "lost" not in printed[0]
    assert printed[1]["lost"] is True
