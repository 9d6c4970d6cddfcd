"""Sending checkpoints beside the training: what goes wrong there is said, and does not end it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from segclip.console import UserError
from segclip.trainer.checkpoints import upload
from segclip.trainer.checkpoints.store import newest
from segclip.trainer.checkpoints.upload import Uploads
from segclip.trainer.config import RunConfig, save_run_config
from segclip.trainer.faults import FAULTS, FIRED
from tests.trainer.checkpoints.checkpoint_files import run_config, write_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return run_config(tmp_path / "run", tmp_path / "store")


def test_a_fault_of_ours_is_said_and_the_next_upload_makes_up_for_it(
    config: RunConfig, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, uploads = write_checkpoint(Path(config.run_dir), 3), Uploads(config)
    sums = (folder / "checksums.json").read_text()
    (folder / "checksums.json").write_text("5")
    uploads.begin()
    with pytest.raises(UserError, match=r"not all of its checkpoints are at .*TypeError: 'int' object"):
        uploads.finish()
    assert capfd.readouterr().err.count("warning: checkpoints could not be uploaded") == 2
    (folder / "checksums.json").write_text(sums)
    uploads.begin()
    uploads.finish()
    assert config.checkpoint.upload is not None
    assert newest(config.checkpoint.upload) == folder.name


@pytest.mark.filterwarnings("ignore:Exception in thread upload")
def test_an_upload_thread_that_has_ended_is_started_again(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, uploads = Path(config.run_dir), Uploads(config)
    old = write_checkpoint(run_dir, 3)
    uploads.begin()
    uploads.finish()
    write_checkpoint(run_dir, 6)

    def end() -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(uploads, "_send", end)
        uploads.begin()
        uploads.wait()
        with pytest.raises(UserError, match="they were not sent to their end"):
            uploads.finish()
    uploads.delete([old])
    assert not old.exists()
    uploads.begin()
    uploads.finish()
    assert config.checkpoint.upload is not None
    assert newest(config.checkpoint.upload) == "step-00000006"


STOPPING = """
import signal, sys
from segclip.trainer.checkpoints.upload import Uploads
from segclip.trainer.config import load_run_config
if __name__ == "__main__":
    asked = []
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, _: asked.append(number))
    uploads = Uploads(load_run_config(sys.argv[1]))
    uploads.begin()
    uploads.stop()
    print(sorted(set(asked)))
"""


def test_signals_to_a_whole_job_break_no_upload(config: RunConfig, tmp_path: Path) -> None:
    folder, fired = write_checkpoint(Path(config.run_dir), 3), tmp_path / "fired"
    save_run_config(config, tmp_path / "config.yaml")
    (tmp_path / "program.py").write_text(STOPPING)
    fault = {"where": "upload file", "rank": 0, "step": 3, "what": "sleep 1"}
    program = subprocess.Popen(
        [sys.executable, tmp_path / "program.py", tmp_path / "config.yaml"],
        env={**os.environ, FAULTS: json.dumps([fault]), FIRED: str(fired), "RANK": "0"},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 60
    while not fired.exists():
        assert program.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
    os.killpg(program.pid, signal.SIGTERM)
    os.killpg(program.pid, signal.SIGUSR1)
    printed, errors = program.communicate(timeout=60)
    assert (program.returncode, errors) == (0, "")
    assert len(fired.read_text().splitlines()) == 1
    assert f"uploaded {folder.name} to" in printed
    assert str([int(signal.SIGUSR1), int(signal.SIGTERM)]) in printed
    assert config.checkpoint.upload is not None
    assert newest(config.checkpoint.upload) == folder.name


def test_a_stop_waits_only_so_long(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    uploads, sent = Uploads(config), threading.Event()
    monkeypatch.setattr(uploads, "_send", sent.wait)
    monkeypatch.setattr(upload, "STOP_SECONDS", 0.1)
    uploads.begin()
    uploads.stop()
    said = f"warning: checkpoints are still being sent to {config.checkpoint.upload} after 0.1 s"
    assert said in capfd.readouterr().err
    sent.set()
    uploads.wait()
    uploads.stop()
    assert capfd.readouterr().err == ""
