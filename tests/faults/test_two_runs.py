"""Two runs into one folder: the second refuses and touches nothing; a lock that a killed run has left is none."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from segclip.trainer.run_lock import LOCK
from tests.faults.conftest import LONGEST, Fault, Run
from tests.ranks import Group

pytestmark = pytest.mark.slow


def until(condition: Callable[[], bool], group: Group) -> None:
    end = time.monotonic() + LONGEST
    while not condition():
        assert time.monotonic() < end, group.text()
        time.sleep(0.2)


def holder(run: Run) -> dict[str, object]:
    found: dict[str, object] = json.loads((run.folder / LOCK).read_text(encoding="utf-8"))
    return found


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_second_run_names_the_first_and_touches_nothing(run: Run, unbroken: Run) -> None:
    first = run.begin(
        "checkpoint.background=false", "train.lost_after=0", faults=[Fault("before step", 4, "stop")]
    )
    try:
        until(lambda: bool(run.fired()), first)
        seen = [content(run.folder)]
        until(lambda: seen.append(content(run.folder)) or seen[-1] == seen[-2], first)  # type: ignore[func-returns-value]
        before = seen[-1]
        owner = holder(run)
        assert (owner["pid"], owner["host"]) == (first.ranks[0].pid, socket.gethostname())
        codes, text = run()
        assert set(codes) == {2}
        (error,) = [line for line in text.splitlines() if "error: " in line]
        assert (
            f"run_dir {run.folder} is in use by process {owner['pid']} on {owner['host']} since {owner['time']} ("
        ) in error
        assert f"--config {run.config}" in error
        assert "Traceback" not in text
        assert content(run.folder) == before
        assert run.fired() == ["before step"]
        # It disturbed nothing: the first one goes on to the same end.
        os.kill(first.ranks[0].pid or 0, signal.SIGCONT)
        assert first.wait(LONGEST)
        assert first.codes() == [0, 0], first.text()
    finally:
        first.kill()
    run.must_equal(unbroken)


def test_the_lock_of_a_killed_run_is_stale(run: Run, unbroken: Run) -> None:
    """Its file is there, with the process that is gone; loader processes of it do not keep it."""
    first = run.begin("data.workers=1", faults=[Fault("before step", 4)])
    try:
        assert first.wait(LONGEST)
        assert first.codes()[0] == -signal.SIGKILL, first.text()
        assert run.fired() == ["before step"]
        assert holder(run)["pid"] == first.ranks[0].pid
    finally:
        first.kill()
    codes, text = run("data.workers=1")
    assert codes == [0, 0], text
    assert "is in use" not in text
    assert holder(run)["pid"] != first.ranks[0].pid
    run.must_equal(unbroken)
