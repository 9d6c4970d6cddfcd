"""Runs of twelve steps over 80 samples in 8 shards, two epochs and a half; two ranks walk two lanes each.

Fixtures among these are imported by test modules and found by name.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from segclip.data_pipelines.scenes.sets import SceneSet, write_scene_shards
from segclip.data_pipelines.storage.s3_server import S3Server, s3_server
from tests.distributed.conftest import SMALL
from tests.faults.conftest import Run

__all__ = [
    "STEPS",
    "complete",
    "new_run",
    "samples",
    "scenes",
    "stops",
    "store",
    "the_error",
    "until",
    "untouched",
]

STEPS = 12
# After the settings of Run itself.
WHOLE = (f"train.steps={STEPS}", "checkpoint.every=100", "train.look_every=0")


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 scenes in 8 shards. Do not write to it."""
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_scene_shards(str(folder), SceneSet(80, 3, size=48), per_shard=10, processes=1)
    return folder


@pytest.fixture(scope="session")
def untouched(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that nothing happens to, from a local disk."""
    run = new_run(tmp_path_factory.mktemp("untouched"), str(scenes))
    complete(run)
    return run


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server."""
    with s3_server(tmp_path_factory.mktemp("s3"), bucket="bucket") as server:
        yield server


def new_run(folder: Path, shards: str, **data: object) -> Run:
    """A run that has not begun, with some settings of ``data``."""
    settings = {**SMALL["data"], "lanes": 4, "shuffle_block": 5, **data, "shards": shards}
    config = folder / "config.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    config.write_text(
        yaml.safe_dump({**SMALL, "run_dir": str(folder / "run"), "data": settings}), encoding="utf-8"
    )
    return Run(folder / "run", config)


def complete(run: Run, *overrides: str, environment: dict[str, str] | None = None) -> str:
    """Run to the end; returns what was printed."""
    codes, text = run(*WHOLE, *overrides, environment=environment)
    assert codes == [0, 0], text
    return text


def stops(run: Run, *overrides: str, environment: dict[str, str] | None = None) -> str:
    """Run until it stops by itself; returns the line that says why."""
    return the_error(*run(*WHOLE, *overrides, environment=environment))


def the_error(codes: list[int | None], text: str) -> str:
    """The one line in which ranks that have stopped together say why."""
    assert codes == [2, 2], text
    assert "Traceback" not in text
    (error,) = [line for line in text.splitlines() if "error: " in line]
    return error


def samples(run: Run) -> dict[int, str]:
    """By its place in the run, each sample that was trained on, as a sum of its content."""
    found: dict[int, str] = {}
    for path in run.folder.glob("samples-*.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            found.update(zip(row["positions"], row["content"], strict=True))
    return found


def until(holds: Callable[[], bool], seconds: float = 120.0) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)
