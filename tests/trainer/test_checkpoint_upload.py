"""Sending checkpoints beside the training: what goes wrong there is said, and does not end it."""

from __future__ import annotations

from pathlib import Path

import pytest

from segclip.console import UserError
from segclip.trainer.checkpoint import CheckpointConfig
from segclip.trainer.checkpoint_store import newest
from segclip.trainer.checkpoint_upload import Uploads
from segclip.trainer.config import RunConfig
from tests.distributed.conftest import SMALL
from tests.trainer.checkpoint_files import write_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return RunConfig.model_validate(
        {
            **SMALL,
            "run_dir": str(tmp_path / "run"),
            "data": {**SMALL["data"], "shards": "x"},
            "checkpoint": CheckpointConfig(upload=(tmp_path / "store").as_uri()).model_dump(),
        }
    )


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
