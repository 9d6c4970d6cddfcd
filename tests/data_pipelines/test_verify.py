from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from segclip.data_pipelines.scenes.sets import SCENE_SUPERPIXELS
from segclip.data_pipelines.tar import group_samples
from segclip.data_pipelines.verify import verify_set
from tests.data_pipelines.faulty_server import faulty_server


def test_a_set_holds_what_its_manifest_states(scene_set: Path) -> None:
    manifest = verify_set(str(scene_set))
    assert [shard.count for shard in manifest.shards] == [17, 17, 17, 17, 17, 15]
    assert manifest.samples == 100
    assert manifest.superpixels == SCENE_SUPERPIXELS
    assert manifest.source == {"generator": "scenes", "count": 100, "seed": 5, "size": 48}
    assert sorted(path.name for path in scene_set.iterdir()) == [
        *(f"{n:05d}.tar" for n in range(6)),
        "manifest.json",
    ]
    data = (scene_set / "00000.tar").read_bytes()
    samples = group_samples(data, "0")
    assert [each.key for each in samples[:2]] == ["00000000", "00000001"]
    assert list(samples[0].members) == ["jpg", "txt", "json", "superpixels.png"]


@pytest.fixture
def copy(scene_set: Path, tmp_path: Path) -> Path:
    shutil.copytree(scene_set, tmp_path / "copy")
    return tmp_path / "copy"


def test_verify_finds_every_difference(copy: Path) -> None:
    shard = copy / "00002.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-512])
    with pytest.raises(ValueError, match=r"00002.tar has \d+ bytes, the manifest states \d+"):
        verify_set(str(copy))
    shard.write_bytes(whole[:700] + bytes([whole[700] ^ 1]) + whole[701:])
    with pytest.raises(ValueError, match=r"00002.tar does not match the manifest \(SHA-256\)"):
        verify_set(str(copy))
    shard.unlink()
    with pytest.raises(ValueError, match=r"00002.tar does not exist"):
        verify_set(str(copy))
    shard.write_bytes(whole)
    document = json.loads((copy / "manifest.json").read_text())
    document["shards"][2]["count"] = 16
    (copy / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"00002.tar holds 17 samples, the manifest states 16"):
        verify_set(str(copy))


def test_verify_names_all_bad_shards(copy: Path) -> None:
    (copy / "00001.tar").unlink()
    shard = copy / "00004.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    seen: list[str] = []
    with pytest.raises(
        ValueError, match=r"^2 of 6 shards are bad: .*00001.tar does not exist.*; .*00004.tar has"
    ):
        verify_set(str(copy), lambda entry: seen.append(entry.path))
    assert len(seen) == 6


def test_verify_finds_tars_that_nobody_reads(copy: Path) -> None:
    shutil.copy(copy / "00002.tar", copy / "00006.tar")
    with pytest.raises(
        ValueError, match=r"holds 1 tars that its manifest does not name, the first is 00006.tar"
    ):
        verify_set(str(copy))


def test_verify_says_what_it_cannot_know(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    with faulty_server() as server:
        for path in copy.iterdir():
            server.content[f"/set/{path.name}"] = path.read_bytes()
        assert verify_set(f"{server.url}/set").samples == 100
    assert "cannot be listed" in caplog.text
