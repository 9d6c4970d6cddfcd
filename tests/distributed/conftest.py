"""Two real ranks over gloo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from segclip.data_pipelines.scenes.sets import SceneSet, write_scene_shards

SMALL: dict[str, Any] = {
    "name": "test",
    "run_dir": "",
    "model": {
        "image_size": 32,
        "patch_size": 8,
        "vision_width": 32,
        "vision_heads": 2,
        "vision_layers": 3,
        "first_stage_layers": 2,
        "centers": 4,
        "center_init_std": 1.0,
        "ignore_empty_centers": True,
        "embed_dim": 32,
        "text_width": 32,
        "text_heads": 2,
        "text_layers": 1,
        "context_length": 16,
        "decoder_depth": 1,
        "decoder_heads": 2,
    },
    "data": {
        "shards": "",
        "image_size": 32,
        "words": 16,
        "workers": 0,
        "lanes": 4,
        "shuffle_block": 20,
        "caption_parts": {"full": 0.8, "object": 0.12, "ground": 0.08},
    },
    "loss": {"superpixel_kl": 10.0, "skip_false_negatives": True},
    "train": {"steps": 6, "global_batch": 16, "precision": "fp32", "log_every": 1},
    "optimizer": {"lr": 1e-3, "frozen": ["text.token_embedding"]},
    "schedule": {"warmup": 0.3},
    "checkpoint": {"every": 3},
    "tracking": {"enabled": False},
}


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 scenes in 4 shards, in a folder called "shards"."""
    folder = tmp_path_factory.mktemp("data") / "shards"
    write_scene_shards(str(folder), SceneSet(80, 3, size=48), per_shard=20, processes=1)
    return folder


@pytest.fixture(scope="session")
def config_file(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of some ten thousand weights and six steps."""
    folder = tmp_path_factory.mktemp("config")
    tree = {**SMALL, "run_dir": str(folder / "run"), "data": {**SMALL["data"], "shards": str(shards)}}
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def selected(request: pytest.FixtureRequest, path: Path, parameter: str, **others: object) -> set[Any]:
    """Values of a parameter in the tests of a file that this session runs, where other parameters are as given."""
    cases = [
        item.callspec.params
        for item in request.session.items
        if item.path == path and isinstance(item, pytest.Function) and hasattr(item, "callspec")
    ]
    return {
        case[parameter]
        for case in cases
        if parameter in case and all(case.get(name) == value for name, value in others.items())
    }
