"""The quickstart as its users start it, small: what it leaves on disk and what MLflow knows of it afterwards."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image

from segclip.rendezvous import free_port
from segclip.trainer import quickstart
from segclip.trainer.config import flatten
from tests.run_files import metrics

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
ROOT = Path(__file__).parents[2]
# Two shards, one for each rank.
SMALL = [
    "--scenes", "1001", "--held-out-scenes", "6", "train.steps=2", "train.global_batch=16", "train.log_every=1",
    "data.workers=0", "data.lanes=2", "data.shuffle_block=50",
]  # fmt: skip


def run_quickstart(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "MLFLOW_"))}
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "segclip.trainer.quickstart",
            "--run-dir",
            root,
            *SMALL,
            *arguments,
        ],
        cwd=ROOT,
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that a quickstart has left, and another one has filled."""
    folder = tmp_path_factory.mktemp("quickstart") / "run"
    folder.mkdir()
    (folder / quickstart.MARKER).touch()
    (folder / "old.txt").touch()
    done = run_quickstart(folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def summary(root: Path) -> dict[str, float]:
    return json.loads((root / "summary.json").read_text())


@pytest.fixture(scope="module")
def client(root: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{root / 'train' / 'mlflow.db'}")


@pytest.fixture(scope="module")
def run(client: MlflowClient) -> Run:
    """The one run that MLflow has, beside those of its evaluations below it."""
    all_of_them = client.search_runs([client.get_experiment_by_name("segclip").experiment_id])
    (found,) = [each for each in all_of_them if "mlflow.parentRunId" not in each.data.tags]
    (score,) = [each for each in all_of_them if each is not found]
    assert score.data.tags["mlflow.parentRunId"] == found.info.run_id
    assert score.info.run_name == "scenes, all images"
    return found


def test_an_earlier_run_of_its_own_is_removed(root: Path) -> None:
    assert not (root / "old.txt").exists()
    assert (root / quickstart.MARKER).is_file()


def test_the_summary(root: Path, summary: dict[str, float]) -> None:
    assert list(summary) == [field.name for field in fields(quickstart.Summary)]
    # Two steps on six pictures may well hit nothing.
    assert 0 <= summary["miou"] < 1
    assert 0 <= summary["miou_untrained"] < 1
    assert summary["samples_per_second"] > 0
    assert min(summary[f"minutes_{part}"] for part in ("data", "training", "evaluation")) > 0
    parts = ("install", "data", "training", "evaluation")
    assert summary["minutes_total"] == pytest.approx(sum(summary[f"minutes_{part}"] for part in parts))
    # Scored twice, at the end of the training and by the standalone evaluation.
    assert json.loads((root / "train" / "summary.json").read_text())["miou"] == pytest.approx(summary["miou"])


def test_the_pictures(root: Path) -> None:
    for name in (
        "scenes.png",
        "evaluation/overlays.png",
        "evaluation/confusion.png",
        "train/evaluation/overlays.png",
    ):
        with Image.open(root / name) as picture:
            assert min(picture.size) > 100, name


def test_mlflow_holds_the_flattened_configuration(root: Path, run: Run) -> None:
    config = flatten(yaml.safe_load((root / "train" / "config.yaml").read_text()))
    assert run.data.params == {key: str(value) for key, value in config.items()} | {"world_size": "2"}
    assert run.info.status == "FINISHED"


@pytest.mark.parametrize(
    "name",
    [
        "loss/total",
        "loss/contrastive",
        "loss/superpixel_kl",
        "loss/reconstruction",
        "gradient_norm",
        "samples_per_second",
        "memory/peak_gib",
    ],
)
def test_mlflow_holds_the_course_of_the_training(
    root: Path, client: MlflowClient, run: Run, name: str
) -> None:
    lines = metrics(root / "train")
    found = [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, name)]
    assert found == [(line["step"], pytest.approx(line[name])) for line in lines]
    assert [step for step, _ in found] == [1, 2]
    assert all(value > 0 for _, value in found)


def test_mlflow_holds_the_learning_rate_of_each_group(root: Path, run: Run) -> None:
    line = metrics(root / "train")[-1]
    wanted = {name: rate for name, rate in line.items() if name.startswith("lr/")}
    assert wanted
    assert {name: run.data.metrics[name] for name in wanted} == pytest.approx(wanted)


def test_mlflow_holds_the_scores_and_figures(run: Run, summary: dict[str, float]) -> None:
    assert run.data.metrics["miou"] == pytest.approx(summary["miou"])
    assert "pixel_accuracy" in run.data.metrics
    assert any(name.startswith("iou/") for name in run.data.metrics)
    figures = {name: run.data.metrics[f"quickstart/{name}"] for name in summary}
    assert figures == pytest.approx(summary)


@pytest.mark.parametrize(
    ("stored", "written"),
    [
        ("config.yaml", "train/config.yaml"),
        ("summary.json", "summary.json"),
        ("evaluation/result.json", "train/evaluation/result.json"),
        ("evaluation/overlays.png", "train/evaluation/overlays.png"),
        ("evaluation/confusion.png", "train/evaluation/confusion.png"),
    ],
)
def test_mlflow_holds_the_files(
    root: Path, client: MlflowClient, run: Run, tmp_path: Path, stored: str, written: str
) -> None:
    copy = Path(client.download_artifacts(run.info.run_id, stored, str(tmp_path)))
    assert copy.read_bytes() == (root / written).read_bytes()


@pytest.mark.exhaustive  # minutes; that shards are read from S3 is shown by tests/data_pipelines
def test_the_same_through_an_s3_server(tmp_path: Path) -> None:
    """The shards are read from a real server, which is gone afterwards."""
    port, root = free_port(), tmp_path / "run"
    done = run_quickstart(root, "tracking.enabled=false", "--store", "s3", "--s3-port", str(port))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert f"S3 server on http://127.0.0.1:{port}: uploading the shards to s3://segclip/scenes" in done.stdout
    assert (
        yaml.safe_load((root / "train" / "config.yaml").read_text())["data"]["shards"]
        == "s3://segclip/scenes"
    )
    assert len(metrics(root / "train")) == 2
    assert json.loads((root / "summary.json").read_text())["samples_per_second"] > 0
    assert "S3 server stopped" in done.stdout
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
        pass


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that a quickstart says which does not even begin."""
    with pytest.raises(SystemExit) as ended:
        quickstart.main([str(word) for word in arguments])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_port_in_use_is_refused_before_anything_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    (tmp_path / quickstart.MARKER).touch()
    (tmp_path / "earlier").touch()
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        line = refusal(capsys, "--run-dir", tmp_path, "--store", "s3", "--s3-port", port)
    assert line.startswith(f"error: port {port} for the S3 server is already in use")
    assert line.endswith("choose another port")
    assert (tmp_path / "earlier").exists()


def test_a_port_without_a_server_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert "add --store s3" in refusal(capsys, "--run-dir", tmp_path, "--s3-port", "8333")


@pytest.mark.parametrize("what", ["folder", "file"])
def test_what_others_made_is_left_alone(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    place = tmp_path / "thesis"
    if what == "folder":
        place.mkdir()
        (place / "chapter.tex").write_text("precious")
    else:
        place.write_text("precious")
    assert refusal(capsys, "--run-dir", place).startswith(f"error: --run-dir {place} ")
    assert (place / "chapter.tex" if what == "folder" else place).read_text() == "precious"
