"""Ranks that are killed, stopped, or asked to end."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import pytest

from segclip.rendezvous import free_port
from tests.faults.conftest import LONGEST, Fault, Run

pytestmark = pytest.mark.slow
SECONDS_TO_STOP = 60.0
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_is_killed_between_steps(run: Run, unbroken: Run, rank: int) -> None:
    fault = Fault("before step", 4, "kill", rank)
    group = run.begin(faults=[fault])
    try:
        while not run.fired():
            time.sleep(0.05)
        assert group.wait(SECONDS_TO_STOP)
        codes = group.codes()
    finally:
        group.kill()
    assert codes[rank] == -9
    assert codes[1 - rank] == 69, group.text()
    codes_again, text = run(faults=[fault])
    assert codes_again == [0, 0], text
    assert "resuming from" in text
    assert run.fired() == ["before step"]
    run.must_equal(unbroken)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_is_stopped(run: Run, unbroken: Run, rank: int) -> None:
    """It lives, so no connection breaks; the others end, and say which rank they waited for, and where."""
    fault = Fault("before step", 4, "stop", rank)
    group = run.begin("train.lost_after=5", faults=[fault])
    other = group.ranks[1 - rank]
    try:
        other.join(LONGEST)
        assert other.exitcode == 69, group.text()
        assert group.ranks[rank].exitcode is None
        text = group.text()
    finally:
        group.kill()
    (line,) = [line for line in text.splitlines() if "error: " in line]
    assert line.startswith(f"[rank {1 - rank}] error: rank {rank} (")
    assert f"process {group.ranks[rank].pid}) has not answered for" in line
    assert "The others wait for it in: the all-reduce that agrees on going on with the next step" in line
    assert "the same command goes on" in line
    assert run.fired() == ["before step"]
    codes, text = run()
    assert codes == [0, 0], text
    run.must_equal(unbroken)


@pytest.mark.parametrize(("name", "rank"), [("SIGTERM", 0), ("SIGUSR1", 1)])
def test_a_signal_to_one_rank(run: Run, unbroken: Run, name: str, rank: int) -> None:
    """As schedulers send them: a checkpoint of the step that was made, and an exit code of its own."""
    fault = Fault("before step", 4, name, rank)
    codes, text = run(faults=[fault])
    assert run.fired() == ["before step"]
    assert codes == [75, 75], text
    assert f"asked to stop by {name}: a checkpoint is saved" in text
    assert "Traceback" not in text
    assert run.checkpoints() == ["step-00000002", "step-00000003"]
    codes, text = run(faults=[fault])
    assert codes == [0, 0], text
    assert "after step 3" in text
    run.must_equal(unbroken)


def test_a_signal_to_all_ranks(run: Run, unbroken: Run) -> None:
    group = run.begin()
    try:
        while "step 1/" not in group.text():
            assert None in group.codes(), group.text()
            time.sleep(0.02)
        for rank in group.ranks:
            os.kill(rank.pid or 0, signal.SIGTERM)
        assert group.wait(LONGEST)
        assert group.codes() == [75, 75], group.text()
    finally:
        group.kill()
    codes, text = run()
    assert codes == [0, 0], text
    run.must_equal(unbroken)


def test_all_ranks_are_suspended_for_a_while(run: Run, unbroken: Run) -> None:
    """As schedulers do to make room for others: nobody is lost, and the run goes on."""
    group = run.begin("train.lost_after=4", faults=[Fault("before step", 3, "sleep 1")])
    try:
        while not run.fired():
            assert None in group.codes(), group.text()
            time.sleep(0.02)
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for rank in group.ranks:
                os.kill(rank.pid or 0, number)
            if number == signal.SIGSTOP:
                time.sleep(8)
        assert group.wait(LONGEST)
        assert group.codes() == [0, 0], group.text()
    finally:
        group.kill()
    run.must_equal(unbroken)


def test_the_launcher_passes_the_exit_code_on(run: Run) -> None:
    """It ends all ranks as soon as one has left: none may leave before the first has told MLflow."""
    run.folder.mkdir()
    faults = [asdict(Fault("before step", 2, "SIGUSR1", rank=1))]
    binaries = Path(sys.executable).parent
    done = subprocess.run(
        [
            *(binaries / "deepspeed", "--num_accelerators", "2", "--master_port", str(free_port())),
            *(ROOT / "trainer" / "run.py", "--config", run.config, f"run_dir={run.folder}"),
            *("tracking.enabled=true", "tracking.system_metrics=false", "train.steps=4"),
        ],
        env={
            **os.environ,
            "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
            "SEGCLIP_FAULTS": json.dumps(faults),
            "SEGCLIP_FAULTS_FIRED": str(run.folder / "fired"),
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 75, done.stdout[-2000:] + done.stderr[-2000:]
    assert run.fired() == ["before step"]
    assert run.checkpoints() == ["step-00000001"]
    with closing(sqlite3.connect(run.folder / "mlflow.db")) as records:
        assert records.execute("select status from runs").fetchall() == [("KILLED",)]
