"""A small set of scenes that the tests of this folder share. Do not write to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from segclip.data_pipelines.config import DataConfig
from segclip.data_pipelines.scenes.sets import SceneSet, write_scene_shards


@pytest.fixture(scope="session")
def scene_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six shards of 17 scenes but the last, which holds 15: 100 samples."""
    folder = tmp_path_factory.mktemp("scenes")
    write_scene_shards(str(folder), SceneSet(count=100, seed=5, size=48), per_shard=17)
    return folder


@pytest.fixture
def config(scene_set: Path) -> DataConfig:
    return DataConfig(shards=str(scene_set), image_size=24, words=12, workers=0, lanes=6, shuffle_block=7)
