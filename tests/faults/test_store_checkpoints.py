"""Checkpoints in an object store: the local disk is lost, or an upload is cut short, and the run loses nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from segclip.data_pipelines.s3_server import S3Server, s3_server
from segclip.data_pipelines.scene_sets import SceneSet, write_scene_shards
from segclip.trainer.faults import FAULTS, FIRED
from tests.distributed.conftest import SMALL
from tests.ranks import start

pytestmark = pytest.mark.slow
RUN = Path(__file__).parents[2] / "trainer" / "run.py"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3"), bucket="bucket") as running:
        yield running


def losses(run_dir: Path) -> dict[int, list[float]]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: [row["loss/total"], row["gradient_norm"], row["data/samples"]] for row in rows}


def test_a_run_whose_disk_is_lost_goes_on_from_the_store(tmp_path: Path, server: S3Server) -> None:
    """The upload of the last checkpoint but one is killed on the way; then all of the run's folder is gone."""
    write_scene_shards(str(tmp_path / "shards"), SceneSet(80, 3, size=48), per_shard=20, processes=1)
    url, config, fired = f"{server.url}/{tmp_path.name}", tmp_path / "small.yaml", tmp_path / "fired"
    tree = {**SMALL, "run_dir": "", "data": {**SMALL["data"], "shards": str(tmp_path / "shards")}}
    config.write_text(yaml.safe_dump({**tree, "checkpoint": {"every": 2, "upload": url}}))
    faults = [
        {"where": "upload file", "rank": 0, "step": 4, "what": "kill"},
        {"where": "before step", "rank": 1, "step": 6, "what": "kill"},
    ]

    whole = start(RUN, "--config", config, f"run_dir={tmp_path / 'whole'}", "checkpoint.upload=null").finish(
        120
    )
    assert whole.returncode == 0, whole.stdout[-3000:]
    environment = {**server.environment, FAULTS: json.dumps(faults), FIRED: str(fired)}
    broken = start(RUN, "--config", config, f"run_dir={tmp_path / 'run'}", environment=environment)
    done = broken.finish(120)
    assert done.returncode != 0
    assert len(fired.read_text().splitlines()) == 2, done.stdout[-3000:]
    assert f"uploaded step-00000002 to {url}" in done.stdout
    assert f"warning: checkpoints could not be uploaded to {url}: its process was killed" in done.stdout
    assert (tmp_path / "run" / "checkpoints" / "step-00000004").is_dir()

    shutil.rmtree(tmp_path / "run")
    again = start(RUN, "--config", config, f"run_dir={tmp_path / 'run'}", environment=environment).finish(120)
    assert again.returncode == 0, again.stdout[-3000:]
    assert len(fired.read_text().splitlines()) == 2
    assert f"fetched {tmp_path}/run/checkpoints/step-00000002 in" in again.stdout
    assert "after step 2" in again.stdout
    expected, found = losses(tmp_path / "whole"), losses(tmp_path / "run")
    assert found == {step: values for step, values in expected.items() if step > 2}
    one, other = (load_file(tmp_path / name / "export" / "model.safetensors") for name in ("whole", "run"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
