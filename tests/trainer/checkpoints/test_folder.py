"""What is deleted is no checkpoint from the first moment on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from segclip.trainer.checkpoints.folder import complete, remove
from tests.trainer.checkpoints.checkpoint_files import write_checkpoint


def test_a_deletion_that_is_cut_short_leaves_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_checkpoint(tmp_path, 3)

    def cut_short(path: Path) -> None:
        raise OSError(f"{path} is busy")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", cut_short)
        with pytest.raises(OSError, match="is busy"):
            remove(folder)
    assert (folder / "state.json").is_file()
    assert complete(folder.parent) == []
    remove(folder)
    assert not folder.exists()
    with pytest.raises(FileNotFoundError):
        remove(folder)
