"""The small files of a run, damaged or from other versions: migrated, or refused with file and field.

With real ranks; the rest of the cases are beside the sources (``test_train_state.py``, ``test_resuming.py``,
``test_shards.py``).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from segclip.trainer.checkpoints.train_state import FORMAT, read_state
from tests.faults.conftest import Run

pytestmark = pytest.mark.slow


def change(checkpoint: Path, name: str, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit a small file of a checkpoint, as if it had been written so: with the checksum to it."""
    path = checkpoint / name
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    edit(tree)
    path.write_text((json.dumps if name.endswith("json") else yaml.safe_dump)(tree), encoding="utf-8")
    sums = json.loads((checkpoint / "checksums.json").read_text())
    sums[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    (checkpoint / "checksums.json").write_text(json.dumps(sums))


def test_a_checkpoint_of_the_first_version_goes_on(finished: Run, unbroken: Run) -> None:
    """Its state knows neither data nor counts, its configuration not the settings that came later."""
    later = ("format", "data", "data_counts", "bad_shards", "best")
    for name in finished.checkpoints()[1:]:
        shutil.rmtree(finished.folder / "checkpoints" / name)
    old = finished.folder / "checkpoints" / finished.checkpoints()[0]
    change(old, "state.json", lambda tree: [tree.pop(name) for name in later])
    change(old, "config.yaml", lambda tree: [tree["data"].pop("epoch_end"), tree["train"].pop("max_skipped")])
    codes, text = finished()
    assert codes == [0, 0], text
    assert f"after step {int(old.name[5:])}\n" in text
    assert read_state(finished.folder / "checkpoints" / finished.checkpoints()[-1]).format == FORMAT
    finished.must_equal(unbroken)


@dataclass(frozen=True)
class Case:
    """What is wrong in which file, and the words that the error must hold."""

    name: str
    edit: Callable[[dict[str, Any]], object]
    words: tuple[str, ...]


CASES = {
    "a newer state": Case(
        "state.json", lambda tree: tree.update(format=99, place=3), ("format = 99", "update segclip")
    ),
    "an unknown setting": Case(
        "config.yaml",
        lambda tree: tree["train"].update(momentum=0.9),
        ("unknown key 'train.momentum'", "another version of segclip"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("which", CASES)
def test_what_cannot_be_read_is_named(finished: Run, which: str) -> None:
    case = CASES[which]
    newest = finished.folder / "checkpoints" / finished.checkpoints()[-1]
    change(newest, case.name, case.edit)
    before = finished.checkpoints()
    codes, text = finished("train.steps=7")
    assert set(codes) == {2}
    (error,) = [line for line in text.splitlines() if "error: " in line]
    for word in (str(newest / case.name), *case.words):
        assert word in error
    assert "Traceback" not in text
    assert finished.checkpoints() == before


def test_a_manifest_that_is_newer(finished: Run, shards: Path, tmp_path: Path) -> None:
    copy = tmp_path / "shards"
    shutil.copytree(shards, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "version": 2, "index": []}))
    codes, text = finished(f"data.shards={copy}", "train.steps=7")
    assert set(codes) == {2}
    (error,) = [line for line in text.splitlines() if "error: " in line]
    assert f"{copy}/manifest.json: version = 2" in error
    assert "update segclip" in error
