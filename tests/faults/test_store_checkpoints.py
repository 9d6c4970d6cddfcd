"""Checkpoints in an object store: an upload is cut short and the local disk lost, and the run loses nothing."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from segclip.data_pipelines.storage.s3_server import S3Server, s3_server
from tests.faults.conftest import LONGEST, Fault, Run
from tests.ranks import Group

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3"), bucket="bucket") as running:
        yield running


def wait_for(group: Group, words: str) -> None:
    end = time.monotonic() + LONGEST
    while words not in group.text():
        assert time.monotonic() < end, group.text()[-3000:]
        time.sleep(0.05)


def lose_disk(folder: Path) -> None:
    """Delete a run but for what the tests have noted."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "fired" and not path.name.startswith("samples-"):
            path.unlink()


def test_a_run_whose_disk_is_lost_goes_on_from_the_store(run: Run, unbroken: Run, server: S3Server) -> None:
    """The upload of step 4 is killed on its way; then the machine dies, and its disk with it."""
    url = f"{server.url}/runs/mine"
    settings = (f"checkpoint.upload={url}", "checkpoint.background=false")
    # Rank 1 stops where the test waits for the uploads.
    faults = [
        Fault("before step", 3, "stop", rank=1),
        Fault("upload file", 4),
        Fault("before step", 5, "stop", rank=1),
    ]
    group = run.begin(*settings, "train.lost_after=0", faults=faults, environment=server.environment)
    try:
        wait_for(group, f"uploaded step-00000002 to {url}")
        os.kill(group.ranks[1].pid, signal.SIGCONT)
        wait_for(group, f"warning: checkpoints could not be uploaded to {url}: its process was killed")
    finally:
        group.kill()
    assert sorted(run.fired()) == ["before step", "before step", "upload file"]
    assert run.checkpoints() == ["step-00000002", "step-00000004"]

    lose_disk(run.folder)
    codes, text = run(*settings, faults=faults, environment=server.environment)
    assert codes == [0, 0], text
    assert len(run.fired()) == 3
    assert f"fetched {run.folder}/checkpoints/step-00000002 in" in text
    assert f"resuming from {run.folder}/checkpoints/step-00000002 after step 2" in text
    run.must_equal(unbroken)
