"""A real MLflow store in a sqlite file, and one that does not answer."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from benchmarks.mlflow_server import mlflow_server
from segclip.rendezvous import free_port
from segclip.trainer.tracking import Tracker, TrackingConfig, tracking_uri

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.mark.slow  # a sqlite store takes about ten seconds to make
def test_a_run_and_its_continuation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config, note = TrackingConfig(experiment="tests", flush_seconds=600), tmp_path / "note.txt"
    note.write_text("hello")
    first = Tracker(config, tmp_path, "a run")
    first.parameters({f"p{i}": i for i in range(250)} | {"long": "x" * 10_000})
    first.metrics({"loss/total": 2.0, "lr/new": 0.1}, step=1)
    first.artifact(note, "notes")
    first.finish("FAILED")

    second = Tracker(config, tmp_path, "a run", first.run_id)
    second.parameters({"p1": "another value", "later": 1})
    second.metrics({"loss/total": 1.0}, step=2)
    second.finish()
    assert second.run_id == first.run_id

    client = MlflowClient(tracking_uri(config, tmp_path))
    run = client.get_run(first.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.end_time >= run.info.start_time
    assert len(run.data.params) == 252
    assert run.data.params["p1"] == "1"
    assert [(m.step, m.value) for m in client.get_metric_history(first.run_id, "loss/total")] == [
        (1, 2.0),
        (2, 1.0),
    ]
    assert [a.path for a in client.list_artifacts(first.run_id, "notes")] == ["notes/note.txt"]
    assert (tmp_path / "artifacts").is_dir()


@pytest.mark.slow
def test_a_run_goes_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", elsewhere)
    tracker = Tracker(TrackingConfig(experiment="tests", flush_seconds=600), tmp_path / "run", "a run")
    tracker.metrics({"loss/total": 2.0}, step=1)
    tracker.finish()
    assert tracker.run_id is not None
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert MlflowClient(elsewhere).get_run(tracker.run_id).data.metrics == {"loss/total": 2.0}
    assert not (tmp_path / "run" / "mlflow.db").exists()


def test_a_server_that_refuses_delays_nothing_and_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = TrackingConfig(uri="http://127.0.0.1:9", flush_seconds=0.5)
    begin = time.perf_counter()
    with caplog.at_level(logging.WARNING):
        tracker = Tracker(config, tmp_path, "a run")
        for step in range(100):
            tracker.metrics({"loss/total": 1.0}, step)
        assert tracker.wait_for_run_id(0.1) is None
        tracker.finish()
    assert time.perf_counter() - begin < 5
    assert "MLflow" in caplog.text


@pytest.mark.slow
def test_what_a_server_did_not_take_is_sent_when_it_is_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A real server: down at first, started while the run goes on, down again at its end, up once more."""
    port = free_port()
    config = TrackingConfig(
        experiment="tests", uri=f"http://127.0.0.1:{port}", flush_seconds=1, system_metrics=False
    )
    with caplog.at_level(logging.WARNING):
        tracker = Tracker(config, tmp_path / "run", "a run")
        tracker.parameters({"batch": 8})
        tracker.metrics({"loss/total": 3.0}, step=1)
        assert not tracker._connected.wait(2)
        with mlflow_server(tmp_path, port):
            assert tracker.wait_for_run_id(120) is not None
            tracker.metrics({"loss/total": 2.0}, step=2)
            until(lambda: tracker._spool.waiting() == 0)
        tracker.metrics({"loss/total": 1.0}, step=3)
        tracker.evaluation("scenes", {"miou": 0.5}, step=3)
        tracker.finish()
    assert "MLflow is not available" in caplog.text
    assert "MLflow has not taken 3 records within 1 s" in caplog.text
    assert f"segclip-doctor mlflow {tmp_path / 'run'}" in caplog.text

    with mlflow_server(tmp_path, port):
        (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(recipe(config)))
        done = subprocess.run(
            [sys.executable, "-m", "segclip.trainer.doctor_cli", "mlflow", tmp_path / "run"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()  # MLflow prints links of its own between ours
        assert {f"3 records wait for {config.uri}", f"3 sent to run {tracker.run_id}, 0 left"} <= set(lines)
        client = MlflowClient(config.uri)
        run = client.get_run(tracker.run_id)
        assert run.data.params == {"batch": "8"}
        history = client.get_metric_history(tracker.run_id, "loss/total")
        assert [(each.step, each.value) for each in history] == [(1, 3.0), (2, 2.0), (3, 1.0)]
        assert run.info.status == "FINISHED"
        found = client.search_runs([run.info.experiment_id], f"tags.mlflow.parentRunId = '{tracker.run_id}'")
        assert [(each.info.run_name, each.data.metrics) for each in found] == [("scenes", {"miou": 0.5})]


def recipe(config: TrackingConfig) -> dict[str, object]:
    """The quickstart's, recorded there."""
    tree = yaml.safe_load((Path(__file__).parents[2] / "configs" / "quickstart.yaml").read_text())
    return {**tree, "tracking": {**config.model_dump(), "flush_seconds": 60.0}}


def until(holds: Callable[[], bool], seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.2)


@pytest.mark.slow
def test_use_of_the_machine_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "1")
    config = TrackingConfig(experiment="tests", uri=f"sqlite:///{tmp_path}/x.db", flush_seconds=600)
    tracker = Tracker(config, tmp_path / "run", "a run")
    assert tracker.wait_for_run_id(120) is not None
    client = MlflowClient(config.uri)
    until(lambda: "system/cpu_utilization_percentage" in client.get_run(tracker.run_id).data.metrics)
    tracker.finish()


def test_where_a_run_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking.example")
    assert tracking_uri(TrackingConfig(), tmp_path) == "http://tracking.example"
    assert tracking_uri(TrackingConfig(uri="http://mine.example"), tmp_path) == "http://mine.example"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert tracking_uri(TrackingConfig(), tmp_path) == f"sqlite:///{tmp_path.resolve()}/mlflow.db"
