"""Files and settings that someone wrote to do harm: refused by name, and nothing of what they wanted has happened.

What they want is a marker file. That they would get it is shown first, where a careless reader would give it to them.
Bombs and pickles in shards: ``test_hostile_shards.py``.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from segclip.data_pipelines.building.build import build_set
from segclip.data_pipelines.building.open_source import open_source
from segclip.data_pipelines.building.options import Options
from segclip.data_pipelines.config import DataConfig
from segclip.data_pipelines.loader import build_loader
from segclip.data_pipelines.manifest import Manifest, describe
from segclip.data_pipelines.shard_writer import pack
from segclip.models.safe_pickles import write_stages_by_value
from segclip.trainer.checkpoints.resuming import check_resumable
from segclip.trainer.config import load_run_config
from segclip.trainer.export_cli import open_checkpoint
from tests.faults.conftest import Run
from tests.faults.test_hostile_shards import GOOD


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "marker"


# --- shards ----------------------------------------------------------------------------------------------------------


def climbing(marker: Path) -> bytes:
    """A member that lies above its folder when it is unpacked."""
    return pack([("000", GOOD), (f"../{marker.name}", GOOD)])[0]


def linked(marker: Path) -> bytes:
    """A picture that is a link to a file elsewhere, and a member that goes through it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("000.jpg", "000.txt"):
            member = tarfile.TarInfo(name)
            member.size = len(GOOD[name[4:]])
            archive.addfile(member, io.BytesIO(GOOD[name[4:]]))
        link = tarfile.TarInfo("001.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, str(marker)
        archive.addfile(link)
        through = tarfile.TarInfo("001.jpg")
        through.size = 1
        archive.addfile(through, io.BytesIO(b"x"))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("make", "told", "careless"),
    [
        (climbing, r"00000\.tar: refused the sample key '\.\./marker' of member '\.\./marker\.jpg'", "marker.jpg"),
        (linked, r"00000\.tar holds a member of tar type b'2' at byte \d+: only regular files", "marker"),
    ],
)  # fmt: skip
def test_a_member_that_leads_out_of_its_shard(
    tmp_path: Path, marker: Path, make: Callable[[Path], bytes], told: str, careless: str
) -> None:
    content = make(marker)
    (tmp_path / "unpacked").mkdir()
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        # Before Python 3.11.4 every member is trusted, and extractall takes no filter.
        archive.extraction_filter = lambda member, folder: member
        archive.extractall(tmp_path / "unpacked")
    (tmp_path / careless).unlink()

    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "00000.tar").write_bytes(content)
    manifest = Manifest(shards=(describe("00000.tar", content, 2),))
    (folder / "manifest.json").write_bytes(manifest.to_json())
    before = sorted(path.name for path in tmp_path.iterdir())
    settings: dict[str, Any] = {"image_size": 16, "words": 12, "workers": 0, "lanes": 1, "shuffle_block": 4}
    config = DataConfig(shards=str(folder), **settings)
    with pytest.raises(ValueError, match=told):
        next(iter(build_loader(config, patch_size=4, rank=0, world_size=1, batch_size=2, seed=0)))

    (folder / "manifest.json").unlink()
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=told):
        build_set(str(out), open_source([str(folder)], per_shard=100), Options(superpixels=None))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "out"])


@pytest.mark.parametrize("path", ["../marker.tar", "a/../../marker.tar", "/marker.tar", "\\\\marker.tar"])
def test_a_manifest_that_leads_out_of_its_folder(tmp_path: Path, path: str) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    content, count = pack([("000", GOOD), ("001", GOOD)])
    (tmp_path / "marker.tar").write_bytes(content)
    entry = {
        "path": path,
        "bytes": len(content),
        "count": count,
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    (folder / "manifest.json").write_text(json.dumps({"shards": [entry]}))
    config = DataConfig(shards=str(folder), workers=0, lanes=1)
    with pytest.raises(
        ValueError, match=r"manifest\.json (is not a valid manifest: shards\.0\.path|names a shard)"
    ):
        build_loader(config, patch_size=16, rank=0, world_size=1, batch_size=2, seed=0)


# --- configurations ---------------------------------------------------------------------------------------------------


def yaml_that_runs(marker: Path) -> str:
    return f"!!python/object/apply:subprocess.check_call [[touch, {marker}]]"


def test_a_configuration_with_tags_of_python(tmp_path: Path, marker: Path, config_file: Path) -> None:
    text = yaml_that_runs(marker)
    yaml.unsafe_load(text)  # it would
    marker.unlink()
    tree = config_file.read_text(encoding="utf-8")
    file = tmp_path / "run.yaml"
    file.write_text(tree.replace("name: test", f"name: {text}"), encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"run\.yaml is not valid YAML: could not determine a constructor for the tag"
    ):
        load_run_config(file)
    with pytest.raises(
        ValueError, match=r"the value of override 'name=!!python/object/apply.*is not valid YAML"
    ):
        load_run_config(config_file, [f"name={text}"])
    checkpoint = tmp_path / "step-00000001"
    checkpoint.mkdir()
    file.rename(checkpoint / "config.yaml")
    with pytest.raises(ValueError, match=r"step-00000001/config\.yaml is not valid YAML"):
        check_resumable(load_run_config(config_file), checkpoint)
    assert not marker.exists()


@pytest.mark.slow
def test_a_command_in_place_of_data(run: Run, marker: Path) -> None:
    """Nothing but ``data.allow_pipe=true`` runs it."""
    codes, text = run(f"data.shards='pipe:touch {marker}; cat {{}}'")
    assert set(codes) == {2}
    (error,) = [line for line in text.splitlines() if "error: " in line]
    assert f"pipe: URLs run shell commands and are refused: 'pipe:touch {marker}; cat {{}}'" in error
    assert "Traceback" not in text
    assert not marker.exists()


# --- checkpoints ------------------------------------------------------------------------------------------------------


class Evil:
    """Opens the marker for writing when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return (open, (str(self.marker), "w"))


def plant(checkpoint: Path, name: str, marker: Path) -> Path:
    """Put code into a file of a checkpoint, and its checksum into the list of them, as who has access can."""
    path = checkpoint / name
    content = torch.load(path, weights_only=False)
    write_stages_by_value()  # as every run does
    torch.save({**content, "extra": Evil(marker)}, path)
    torch.load(path, weights_only=False)["extra"].close()  # it would
    marker.unlink()
    sums = json.loads((checkpoint / "checksums.json").read_text())
    sums[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    (checkpoint / "checksums.json").write_text(json.dumps(sums))
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "ranks"),
    [
        ("mp_rank_00_model_states.pt", 2),
        ("zero_pp_rank_1_mp_rank_00_optim_states.pt", 2),
        ("zero_pp_rank_1_mp_rank_00_optim_states.pt", 1),  # joined by DeepSpeed's other way of loading
    ],
)
def test_a_checkpoint_with_code(finished: Run, marker: Path, name: str, ranks: int) -> None:
    newest = finished.folder / "checkpoints" / finished.checkpoints()[-1]
    path = plant(newest, name, marker)
    codes, text = finished("train.steps=7", ranks=ranks)
    assert set(codes) == {2}
    (error,) = [line for line in text.splitlines() if "error: " in line]
    refusal = f"names {open.__module__}.open, which could run code"  # io in Python 3.11, _io in 3.13
    assert f"checkpoint file {path} {refusal} when it is loaded, so it is not" in error
    assert "Traceback" not in text
    assert not marker.exists()
    with pytest.raises(ValueError, match=re.escape(refusal)):
        open_checkpoint(finished.folder)
    assert not marker.exists()
