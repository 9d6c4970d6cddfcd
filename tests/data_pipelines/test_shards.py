from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from segclip.data_pipelines.manifest import parse_manifest, read_manifest
from segclip.data_pipelines.scenes.sets import SCENE_SUPERPIXELS, SceneSet, write_scene_shards
from segclip.data_pipelines.shards import pack, verify_set, write_set
from segclip.data_pipelines.tar import group_samples
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


def test_processes_do_not_change_the_bytes(scene_set: Path, tmp_path: Path) -> None:
    write_scene_shards(str(tmp_path), SceneSet(count=100, seed=5, size=48), per_shard=17, processes=2)
    for file in scene_set.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()


def test_a_failing_maker_stops_the_writing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        write_set(str(tmp_path), fail_on_two, 9, processes=2, superpixels=None, source={})
    assert not (tmp_path / "manifest.json").exists()


def fail_on_two(number: int) -> tuple[bytes, int]:
    return pack([("a", {"txt": bytes([1 // (2 - number)])})])


def test_sets_without_maps_and_impossible_sets(tmp_path: Path) -> None:
    manifest = write_scene_shards(str(tmp_path), SceneSet(count=3, seed=0, size=32, superpixels=None))
    assert manifest.superpixels is None
    (shard,) = manifest.shards
    members = group_samples((tmp_path / shard.path).read_bytes(), "x")[0].members
    assert "superpixels.png" not in members
    with pytest.raises(ValueError, match="count is 0"):
        SceneSet(count=0, seed=0)
    with pytest.raises(ValueError, match="0 scenes per shard"):
        write_scene_shards(str(tmp_path), SceneSet(count=3, seed=0), per_shard=0)


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shards": []}, "names zero shards"),
        ({"version": 2}, "version = 2, and this version of segclip knows manifests up to 1: update segclip"),
        ({"version": "2"}, "not a valid manifest: version"),
        ({"extra": 1}, "not a valid manifest: extra"),
        ({"shards": [{"path": "../a.tar", "bytes": 1, "count": 1, "sha256": "0" * 64}]}, "manifest"),
        (
            {"shards": [{"path": "a/../../b.tar", "bytes": 1, "count": 1, "sha256": "0" * 64}]},
            "outside its folder",
        ),
        ({"shards": [{"path": "a.tar", "bytes": 1, "count": 1, "sha256": "0" * 64}] * 2}, "twice"),
        ({"shards": [{"path": "a.tar", "bytes": 1, "count": 0, "sha256": "0" * 64}]}, r"shards.0.count"),
    ],
)
def test_broken_manifests_are_refused(scene_set: Path, change: dict[str, object], message: str) -> None:
    document = json.loads((scene_set / "manifest.json").read_text())
    with pytest.raises(ValueError, match=message) as caught:
        parse_manifest(json.dumps({**document, **change}).encode(), "x/manifest.json")
    assert "x/manifest.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_manifest_comes_back(scene_set: Path) -> None:
    manifest = read_manifest(str(scene_set))
    assert parse_manifest(manifest.to_json(), "x") == manifest
    with pytest.raises(ValueError, match="not a valid manifest"):
        parse_manifest(b"<html>", "x")
