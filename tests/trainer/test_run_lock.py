"""A folder is one run's at a time; what holds it is a process that lives, not a file that lies there."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from segclip.trainer.run_lock import LOCK, hold_run_folder

# Holds the folder and forks a worker that goes on without it, as loaders do.
HOLDER = """
import os, sys, time
from segclip.trainer.run_lock import hold_run_folder
hold_run_folder(sys.argv[1])
if os.fork() == 0:
    time.sleep(60)
print("held", flush=True)
time.sleep(60)
"""


@contextmanager
def other_run(folder: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), "--config", "a b.yaml"],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def test_the_other_run_is_named(tmp_path: Path) -> None:
    with other_run(tmp_path) as process:
        begin = time.monotonic()
        with pytest.raises(ValueError) as caught:
            hold_run_folder(tmp_path, patience=0.3)
        assert 0.3 <= time.monotonic() - begin < 2
        owner = json.loads((tmp_path / LOCK).read_text())
        assert owner["pid"] == process.pid
        assert str(caught.value) == (
            f"run_dir {tmp_path} is in use by process {process.pid} on {owner['host']} since {owner['time']} "
            f"(-c {tmp_path} --config 'a b.yaml'): wait for that run or end it, or give another run_dir (if its host "
            f"is gone for good, remove {tmp_path / LOCK})"
        )


def test_a_killed_run_holds_nothing_though_its_workers_live(tmp_path: Path) -> None:
    with other_run(tmp_path) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == process.pid
        hold_run_folder(tmp_path, patience=0)
        os.killpg(process.pid, 0)  # the worker
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    hold_run_folder(tmp_path)  # again, by the same process


def test_one_that_is_just_ending_is_waited_for(tmp_path: Path) -> None:
    with other_run(tmp_path) as process:
        killer = subprocess.Popen(["/bin/sh", "-c", f"sleep 0.5; kill -9 {process.pid}"])
        hold_run_folder(tmp_path, patience=20)
        assert killer.wait(10) == 0


def test_a_lock_that_says_nothing_yet(tmp_path: Path) -> None:
    with other_run(tmp_path):
        os.truncate(tmp_path / LOCK, 0)
        with pytest.raises(ValueError, match="is in use by another run that has just started: wait"):
            hold_run_folder(tmp_path, patience=0)


def test_a_file_system_without_locks_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    # No such file system is to be had here.
    monkeypatch.setattr(fcntl, "lockf", no_locks)
    with caplog.at_level(logging.WARNING):
        hold_run_folder(tmp_path)
    assert f"{tmp_path / LOCK} cannot be locked (No locks available)" in caplog.text


def test_another_error_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"run\.lock"):
        hold_run_folder(tmp_path / "missing")
