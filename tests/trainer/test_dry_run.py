from __future__ import annotations

from pathlib import Path

import pytest

from segclip.data_pipelines.scenes.sets import SceneSet, write_scene_shards
from segclip.models.flops import training_flops
from segclip.trainer.config import RunConfig, load_run_config
from segclip.trainer.dry_run import describe
from segclip.trainer.progress import duration

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_scene_shards(str(folder), SceneSet(32, 3, size=48), per_shard=8, processes=1)
    return folder


def config(shards: Path, *overrides: str) -> RunConfig:
    fixed = (f"data.shards={shards}", "evaluation.dataset=null", "data.workers=0", "data.lanes=4")
    return load_run_config(QUICKSTART, [*fixed, "train.global_batch=16", "train.steps=10", *overrides])


def test_what_a_run_would_do(shards: Path) -> None:
    given = config(shards, "train.micro_batch=4")
    told = dict(describe(given, 2))
    assert told["data"] == "scenes: 32 samples in 4 shards; 0 workers a rank"
    assert told["batch"] == "16 = 2 ranks x 2 micro-batches x 4"
    assert told["steps"] == "10, 5.00 epochs"
    flops = training_flops(given.model, given.data.words)
    assert told["arithmetic"] == f"{flops / 1e9:.1f} GFLOP a sample, forward and backward"
    assert "GiB predicted" in told["memory a card"]


def test_time_grows_with_steps_and_with_cached_features(shards: Path) -> None:
    steps = 10**7
    given = config(shards, f"train.steps={steps}")
    seconds = steps * 16 * training_flops(given.model, given.data.words) / (989e12 * 0.30)
    assert dict(describe(given, 1))["time"].startswith(duration(seconds) + ", if each rank has an H100")
    given = config(shards, f"train.steps={steps}", "train.micro_batch=8")
    assert dict(describe(given, 1))["time"].startswith(duration(seconds * 4 / 3))


def test_weights_make_epochs_of_their_own(shards: Path) -> None:
    sources = ", ".join(
        f"{{name: {name}, shards: {shards}, weight: {weight}}}" for name, weight in (("a", 3), ("b", 1))
    )
    told = dict(describe(config(shards, "data.shards=null", f"data.sources=[{sources}]"), 2))
    assert told["steps"] == "10, 3.75 epochs of a, 1.25 epochs of b"
    assert "a: 32 samples in 4 shards, weight 3; b: " in told["data"]


@pytest.mark.parametrize(
    ("overrides", "processes", "told"),
    [
        ([], 3, "train.global_batch is 16"),
        ([], 8, "4 shards are fewer than 8 readers"),
        (["data.shards=/nowhere"], 1, "does not exist"),
        (["evaluation.dataset=voc21", "evaluation.data_root=/nowhere"], 1, "/nowhere"),
        ([], 0, "at least one process"),
    ],
)
def test_what_the_run_would_be_refused_for(
    shards: Path, overrides: list[str], processes: int, told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        describe(config(shards, *overrides), processes)
