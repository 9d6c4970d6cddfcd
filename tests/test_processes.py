from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from segclip.processes import Tick, run_tasks


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes import the tasks of this file by its name."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))


def square(number: int, tick: Tick) -> int:
    for _ in range(number):
        tick()
    if number == 13:
        raise ValueError("13 is refused")
    return number * number


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_all_results_come_and_all_ticks_are_told(processes: int) -> None:
    ticks: list[int] = []
    found = run_tasks(square, range(12), processes=processes, tick=ticks.append)
    assert sorted(found) == [number * number for number in range(12)]
    assert sum(ticks) == sum(range(12))


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_error_of_a_task_comes_out(processes: int) -> None:
    with pytest.raises(ValueError, match="13 is refused"):
        list(run_tasks(square, range(10, 20), processes=processes, tick=lambda more: None))


def kill_itself(number: int, tick: Tick) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.slow
def test_a_killed_process_is_an_error_with_a_remedy() -> None:
    with pytest.raises(ValueError, match=r"a process was killed, .*take fewer --processes"):
        list(run_tasks(kill_itself, range(8), processes=2, tick=lambda more: None))


def go_on(folder: Path, tick: Tick) -> None:
    (folder / str(os.getpid())).touch()
    while True:
        tick()
        time.sleep(0.01)


@pytest.mark.slow
def test_tasks_stop_when_no_more_results_are_wanted(tmp_path: Path) -> None:
    def interrupt(more: int) -> None:
        if more:
            raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(run_tasks(go_on, [tmp_path, tmp_path], processes=2, tick=interrupt))
    assert time.monotonic() - start < 60
    for file in tmp_path.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(file.name), 0)
