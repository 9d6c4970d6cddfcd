"""A result in MLflow: a run of its own, or one below the run of the training."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from segclip.console import one_line
from segclip.credentials import check_no_credentials, without_credentials
from segclip.eval.result import Result
from segclip.mlflow_store import (
    EXPERIMENT,
    LONGEST_VALUE,
    METRICS_A_CALL,
    PARAMETERS_A_CALL,
    experiment_id,
    metric_name,
    open_client,
)

__all__ = ["EXIT_NOT_RECORDED", "NotRecorded", "check_store", "evaluation_store", "log_evaluation"]

EXIT_NOT_RECORDED = 3
"""Exit code of an evaluation whose result is written but could not be recorded in MLflow."""

_FIGURES = {
    "miou": "miou",
    "pixel_accuracy": "accuracy",
    "mean_class_accuracy": "mean_class_accuracy",
    "boundary_iou": "boundary_iou",
    "coverage": "coverage",
    "images_per_second": "images_per_second",
}
_PARAMETERS = (
    "dataset", "split", "images", "protocol_sha256", "weights_sha256", "data_sha256", "checkpoint", "device", "ranks",
    "batch_size", "command",
)  # fmt: skip


class NotRecorded(RuntimeError):
    """MLflow did not take a result, which is written all the same; the message is one line."""


def check_store(uri: str) -> None:
    """Refuse a store's URL with a password in it: command lines are seen by others, and kept in results.

    Raises:
        ValueError: it holds one.
    """
    check_no_credentials(
        uri,
        "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or all of it as MLFLOW_TRACKING_URI, "
        "in the environment",
    )


def evaluation_store(given: str | None, folder: str | Path) -> str:
    """What is given, then what ``MLFLOW_TRACKING_URI`` says, then a sqlite file in the evaluation's folder."""
    return (
        given or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path(folder).resolve() / 'mlflow.db'}"
    )


def log_evaluation(
    result: Result,
    files: Iterable[Path],
    *,
    store: str,
    folder: str | Path,
    parent: str | None = None,
    experiment: str = EXPERIMENT,
) -> str:
    """Record a result: figures, what it was made with, and its files.

    Args:
        result: its figures become the metrics ``miou``, ``pixel_accuracy``, ``iou/CLASS`` and others.
        files: become artifacts in ``evaluation``.
        store: address of the tracking server, or of a file: ``evaluation_store``.
        folder: where a sqlite store keeps artifacts, if the experiment is new.
        parent: identifier of a run that this one is to appear below, in its experiment.
        experiment: for a run without a parent.

    Returns:
        The run's identifier.

    Raises:
        NotRecorded: the store is out of reach, broken, or knows no such parent.
    """
    try:
        return _log(result, files, store, folder, parent, experiment)
    except Exception as error:  # whatever the client raises: the result is written, and only this failed
        raise NotRecorded(
            f"not recorded in MLflow at {without_credentials(store)}: {without_credentials(one_line(error))[:300]}"
        ) from error


def _log(
    result: Result,
    files: Iterable[Path],
    store: str,
    folder: str | Path,
    parent: str | None,
    experiment: str,
) -> str:
    client = open_client(store)
    if parent is None:
        place, tags = experiment_id(client, store, experiment, folder), {}
    else:
        place, tags = client.get_run(parent).info.experiment_id, {"mlflow.parentRunId": parent}
    name = f"{result.dataset}, protocol {result.protocol['name']}"
    run_id = str(client.create_run(place, tags=tags, run_name=name).info.run_id)
    try:
        _send(client, run_id, result, files)
    except BaseException:
        client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id, "FINISHED")
    return run_id


def _send(client: Any, run_id: str, result: Result, files: Iterable[Path]) -> None:
    from mlflow.entities import Metric, Param
    from mlflow.utils.time import get_current_time_millis

    now = get_current_time_millis()
    parameters = [Param(key, str(value)[:LONGEST_VALUE]) for key, value in _parameters(result).items()]
    for batch in _batches(parameters, PARAMETERS_A_CALL):
        client.log_batch(run_id, params=batch)
    metrics = [Metric(key, value, now, 0) for key, value in _metrics(result).items()]
    for batch in _batches(metrics, METRICS_A_CALL):
        client.log_batch(run_id, metrics=batch)
    for path in files:
        client.log_artifact(run_id, str(path), "evaluation")


def _parameters(result: Result) -> dict[str, Any]:
    values = {name: getattr(result, name) for name in _PARAMETERS}
    known = {key: value for key, value in values.items() if value is not None}
    return {"protocol": result.protocol["name"], **known}


def _metrics(result: Result) -> dict[str, float]:
    """Figures that there are, by the names that training uses; two classes never share one."""
    found = {name: getattr(result, key) for name, key in _FIGURES.items()}
    if result.intervals is not None:
        found |= {"miou_low": result.intervals.miou.low, "miou_high": result.intervals.miou.high}
    if result.thresholds is not None:
        tuned = result.thresholds.tuned
        found |= {
            "miou_threshold_tuned": None if tuned is None else tuned.miou,
            "miou_threshold_oracle": result.thresholds.oracle.miou,
        }
    if result.vocabulary is not None:
        found |= {metric_name(f"miou_words/{each.name}"): each.miou for each in result.vocabulary.variants}
    for number, each in enumerate(result.classes):
        name = metric_name(f"iou/{each.name}")
        found[f"{name} {number}" if name in found else name] = each.iou
    return {name: float(value) for name, value in found.items() if value is not None}


def _batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    waiting = iter(items)
    while batch := list(islice(waiting, size)):
        yield batch
