"""Results in a real MLflow store, and in one that is not there."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from segclip.eval import run
from segclip.eval.datasets.dataset import open_dataset
from segclip.eval.evaluate import evaluate
from segclip.eval.protocol import load_protocol
from segclip.eval.reports.mlflow_log import EXIT_NOT_RECORDED, NotRecorded, evaluation_store, log_evaluation
from segclip.eval.result import Result

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def result(model, scenes_root) -> Result:
    return evaluate(model, open_dataset("scenes", scenes_root).first(1), load_protocol("scenes"))


def test_a_result_becomes_a_run_and_one_below_another(result, tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = evaluation_store(None, tmp_path)
    assert store == f"sqlite:///{tmp_path}/mlflow.db"
    file = tmp_path / "result.json"
    file.write_text("{}")
    # Names of classes are not chosen with MLflow in mind; two that come out the same stay two.
    first, second, *others = result.classes
    awkward = (
        dataclasses.replace(first, name="person's", iou=0.25),
        dataclasses.replace(second, name="person?s", iou=0.5),
    )
    result = dataclasses.replace(result, classes=(*awkward, *others))
    parent = log_evaluation(result, [file], store=store, folder=tmp_path)
    child = log_evaluation(result, [file], store=store, folder=tmp_path, parent=parent)
    client = MlflowClient(store)
    kept = client.get_run(child)
    assert kept.data.tags["mlflow.parentRunId"] == parent
    assert kept.info.status == "FINISHED"
    assert kept.info.experiment_id == client.get_run(parent).info.experiment_id
    assert kept.data.metrics["miou"] == result.miou
    assert kept.data.metrics["pixel_accuracy"] == result.accuracy
    assert kept.data.metrics["iou/person_s"] == 0.25
    assert kept.data.metrics["iou/person_s 1"] == 0.5
    assert kept.data.params["weights_sha256"] == result.weights_sha256
    assert kept.data.params["protocol"] == "scenes"
    assert [each.path for each in client.list_artifacts(child, "evaluation")] == ["evaluation/result.json"]
    assert (tmp_path / "artifacts").is_dir()
    with pytest.raises(NotRecorded, match="Run with id=nobody not found"):
        log_evaluation(result, [file], store=store, folder=tmp_path, parent="nobody")
    # A file that is gone: the run is there, and says that it failed.
    with pytest.raises(NotRecorded, match=r"gone\.json"):
        log_evaluation(result, [tmp_path / "gone.json"], store=store, folder=tmp_path)
    runs = client.search_runs([kept.info.experiment_id])
    assert sorted(each.info.status for each in runs) == ["FAILED", "FINISHED", "FINISHED"]


def test_a_store_that_is_down_never_loses_the_result(
    checkpoint, scenes_root, tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    begin = time.perf_counter()
    with pytest.raises(SystemExit) as exit:
        run.main(
            ["--checkpoint", str(checkpoint), "--dataset", "scenes", "--data-root", str(scenes_root), "--limit", "1",
             "--out", str(tmp_path / "out"), "--pictures", "0", "--mlflow"]
        )  # fmt: skip
    assert exit.value.code == EXIT_NOT_RECORDED
    warning = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(warning) == 1
    assert warning[0].startswith("warning: not recorded in MLflow at http://127.0.0.1:9: ")
    assert "secret" not in warning[0]
    assert warning[0].endswith(f"the result is in {tmp_path / 'out'}")
    assert (tmp_path / "out" / "result.json").is_file()
    assert (tmp_path / "out" / "report.html").is_file()
    assert time.perf_counter() - begin < 60


def test_no_password_on_the_command_line(tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit) as exit:
        run.main(
            [
                "--checkpoint",
                "x",
                "--dataset",
                "scenes",
                "--data-root",
                ".",
                "--mlflow",
                "https://me:secret@host",
            ]
        )
    assert exit.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: a URL at https://host holds a user, a password or a query: set MLFLOW_")
    assert "secret" not in message
