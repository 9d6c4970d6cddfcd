"""Results are taken over only from runs that would come out the same; what cannot run says so."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.quickstart_ablation import CONFIG, is_done
from segclip.data_pipelines.scenes.sets import SceneSet, write_scene_shards
from segclip.data_pipelines.shard_sets import read_sets
from segclip.trainer.config import load_run_config, save_run_config
from segclip.trainer.export import describe_data

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The files by which a finished run is known, and its settings."""
    folder = tmp_path_factory.mktemp("ablation")
    shards = folder / "data" / "train"
    write_scene_shards(str(shards), SceneSet(8, 3, size=48), per_shard=4, processes=1)
    run = folder / "run"
    settings = [f"run_dir={run}", f"data.shards={shards}", "seed=1"]
    (run / "export").mkdir(parents=True)
    config = load_run_config(ROOT / CONFIG, settings)
    save_run_config(config, run / "config.yaml")
    data = describe_data(read_sets(config.data))
    (run / "export" / "config.json").write_text(json.dumps({"card": {"data": data}}))
    (run / "summary.json").write_text('{"miou": 0.5}')
    return run, settings


def test_the_same_run_is_taken_over(
    finished: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    run, settings = finished
    assert is_done(run, settings)


@pytest.mark.parametrize("change", ["train.steps=20", "seed=2", "loss.superpixel_kl=0"])
def test_another_configuration_is_run_again(
    finished: tuple[Path, list[str]], change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    run, settings = finished
    assert not is_done(run, [*settings, change])


def test_an_unfinished_run_is_run_again(
    finished: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    run, settings = finished
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    assert not is_done(tmp_path / "run", settings)


def test_other_shards_are_run_again(
    finished: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    run, settings = finished
    shards = run.parent / "data" / "train"
    before = (shards / "manifest.json").read_bytes()
    shutil.rmtree(shards)
    write_scene_shards(str(shards), SceneSet(8, 4, size=48), per_shard=4, processes=1)
    assert (shards / "manifest.json").read_bytes() != before
    assert not is_done(run, settings)


@pytest.mark.slow
def test_without_data_it_is_left_out_and_says_why(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.quickstart_ablation", "--data", tmp_path / "none"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 77
    (line,) = done.stderr.splitlines()
    assert (
        line == f"error: there is no data in {tmp_path / 'none'}: run `make quickstart` first, or give --data"
    )


@pytest.mark.slow
def test_all_benchmarks_go_on_past_one_that_is_left_out(tmp_path: Path) -> None:
    if (ROOT / "runs" / "quickstart" / "data").exists():
        pytest.skip("a quickstart has left its data here")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.all",
            "--quick",
            "--only",
            "quickstart_ablation",
            "--json",
            str(tmp_path / "all.json"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "left out: quickstart_ablation: there is no data in runs/quickstart/data" in done.stdout
    assert json.loads((tmp_path / "all.json").read_text()) == {}
