"""A disk that takes nothing more. (Checkpoints: see ``test_checkpoints``; the cache of shards: see ``test_store``.)"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest
from mlflow import MlflowClient

from segclip.trainer.tracking import Tracker, TrackingConfig
from tests.faults.conftest import STEPS, Run
from tests.faults.data_runs import until
from tests.run_files import metrics
from tests.small_disk import fill, small_disk


@pytest.mark.slow
def test_logs_that_find_no_room_stop_no_run(run: Run, unbroken: Run, shards: Path) -> None:
    """Metrics and what waits for MLflow, whose server does not answer, lie on a disk with little room."""
    with small_disk(16) as disk:
        run.folder.mkdir()
        (disk / "mlflow").mkdir()
        (run.folder / "mlflow").symlink_to(disk / "mlflow")
        (run.folder / "metrics.jsonl").symlink_to(disk / "metrics.jsonl")
        codes, text = run(
            "tracking.enabled=true", "tracking.uri=http://127.0.0.1:9", "tracking.flush_seconds=0.5"
        )
        assert codes == [0, 0], text
        for path in (run.folder / "metrics.jsonl", run.folder / "mlflow" / "records.jsonl"):
            said = re.findall(
                rf"{path} cannot be written: No space left on device \([\d,]+ bytes wanted, [\d,]+ are free there\)",
                text,
            )
            assert len(said) == 1, text
            lines = path.read_bytes()
            assert not lines or lines.endswith(b"\n")
            assert all(json.loads(line) for line in lines.splitlines())
        assert re.search(r"but for the last \d+, which found no room on the disk and are lost", text)
        assert 0 < len(metrics(run.folder)) < STEPS
    run.must_equal(unbroken)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_full_database_takes_the_records_when_there_is_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The default store of MLflow, a file of sqlite."""
    with small_disk(4096) as disk:
        config = TrackingConfig(
            experiment="tests", uri=f"sqlite:///{disk}/mlflow.db", flush_seconds=60, system_metrics=False
        )
        tracker = Tracker(config, tmp_path, "a run")
        assert tracker.wait_for_run_id(120) is not None
        with caplog.at_level(logging.WARNING):
            ballast = fill(disk)
            for step in range(100):
                tracker.metrics({f"loss/{n}": float(step) for n in range(20)}, step)
            until(lambda: "MLflow is not available" in caplog.text)
            ballast.unlink()
            until(lambda: tracker._spool.waiting() == 0)
            tracker.finish()
        assert "database or disk is full" in caplog.text
        assert "refused" not in caplog.text
        history = MlflowClient(config.uri).get_metric_history(tracker.run_id, "loss/0")
        assert [each.step for each in history] == list(range(100))
