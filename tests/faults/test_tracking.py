"""A real MLflow server that is slow or stumbles, behind a proxy: training does not feel it, and nothing is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from benchmarks.mlflow_server import mlflow_server
from segclip.trainer import tracking
from segclip.trainer.tracking import Tracker, TrackingConfig
from tests.distributed.conftest import SMALL
from tests.faults.conftest import STEPS, Run
from tests.faults.data_runs import until
from tests.faults.faulty_proxy import FaultyProxy, error_status, faulty_proxy, late
from tests.run_files import metrics

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
# Of a server that takes ten seconds for a call, a loop that waited for one would show it.
SLOW = 10.0


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyProxy]:
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as address, faulty_proxy(address) as running:
        yield running


def test_a_slow_server_delays_no_step_and_loses_nothing(
    proxy: FaultyProxy, shards: Path, unbroken: Run, tmp_path: Path
) -> None:
    settings = {
        "experiment": "slow",
        "uri": proxy.url,
        "flush_seconds": 1.0,
        "system_metrics": False,
        "enabled": True,
    }
    tree = {**SMALL, "data": {**SMALL["data"], "shards": str(shards)}, "tracking": settings}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({**tree, "run_dir": str(tmp_path / "run")}), encoding="utf-8")
    run = Run(tmp_path / "run", config)
    proxy.always = late(SLOW)
    try:
        codes, text = run()
    finally:
        proxy.always = None
    assert codes == [0, 0], text
    assert proxy.asked > 0
    assert "MLflow has not taken" in text
    # Every call of the loop: a line in a file.
    calls = [json.loads(line) for line in (run.folder / "tracker.jsonl").read_text().splitlines()]
    assert [name for name, _ in calls].count("metrics") == STEPS
    assert max(seconds for _, seconds in calls) < 1.0
    run.must_equal(unbroken)

    written = run.folder / "config.yaml"
    written.write_text(written.read_text().replace("flush_seconds: 1.0", "flush_seconds: 60.0"))
    done = subprocess.run(
        [sys.executable, "-m", "segclip.trainer.doctor_cli", "mlflow", run.folder],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    client = MlflowClient(proxy.url)
    identifier = json.loads((run.folder / "mlflow" / "state.json").read_text())["memory"]["run_id"]
    for name in ("loss/total", "gradient_norm", "data/samples"):
        history = client.get_metric_history(identifier, name)
        assert [(each.step, each.value) for each in history] == [
            (row["step"], row[name]) for row in metrics(run.folder)
        ]
    assert client.get_run(identifier).info.status == "FINISHED"


def test_a_server_that_was_away_for_long_and_then_stumbles_loses_nothing(
    proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More attempts have failed to reach it than a record is given."""
    monkeypatch.setattr(tracking, "MOST_ATTEMPTS", 3)
    monkeypatch.setattr(tracking, "LONGEST_PAUSE", 1.0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    port = proxy.close()
    config = TrackingConfig(experiment="stumbles", uri=proxy.url, flush_seconds=60, system_metrics=False)
    tracker = Tracker(config, tmp_path, "a run")
    tracker.metrics({"loss/total": 3.0}, step=1)
    opened = 0
    reach = tracker._open

    def counted() -> object:
        nonlocal opened
        opened += 1
        return reach()

    monkeypatch.setattr(tracker, "_open", counted)
    until(lambda: opened > 4)
    proxy.matches = lambda method, path: path.endswith("/log-batch")
    proxy.plan = {proxy.asked: error_status(503), proxy.asked + 1: error_status(503)}
    proxy.fired.clear()
    proxy.open(port)
    tracker.metrics({"loss/total": 2.0}, step=2)
    until(lambda: tracker._spool.waiting() == 0)
    tracker.finish()
    assert len(proxy.fired) == 2
    assert tracker.run_id is not None
    history = MlflowClient(proxy.url).get_metric_history(tracker.run_id, "loss/total")
    assert [(each.step, each.value) for each in history] == [(1, 3.0), (2, 2.0)]
