"""A real MLflow store in a sqlite file, and one that does not answer."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

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


def test_where_a_run_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking.example")
    assert tracking_uri(TrackingConfig(), tmp_path) == "http://tracking.example"
    assert tracking_uri(TrackingConfig(uri="http://mine.example"), tmp_path) == "http://mine.example"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert tracking_uri(TrackingConfig(), tmp_path) == f"sqlite:///{tmp_path.resolve()}/mlflow.db"
