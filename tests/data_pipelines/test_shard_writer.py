from __future__ import annotations

from pathlib import Path

import pytest

from segclip.data_pipelines.scenes.sets import SceneSet, write_scene_shards
from segclip.data_pipelines.shard_writer import pack, write_set
from segclip.data_pipelines.tar import group_samples


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
