"""The MLflow client as training and evaluation use it: quiet, and with an end to its patience."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

__all__ = [
    "EXPERIMENT",
    "LONGEST_VALUE",
    "METRICS_A_CALL",
    "PARAMETERS_A_CALL",
    "experiment_id",
    "metric_name",
    "open_client",
]

EXPERIMENT = "segclip"
"""Experiment that runs appear under if none is named."""
# MLflow's limits: parameters and metrics in one batch, characters of one parameter and of one name.
PARAMETERS_A_CALL = 100
METRICS_A_CALL = 1000
LONGEST_VALUE = 6000
_LONGEST_NAME = 250


def open_client(uri: str) -> Any:
    """A ``MlflowClient`` whose requests fail after seconds; by itself it retries for minutes. Sends nothing."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    from mlflow import MlflowClient

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    # A stack trace for each attempt at a database that is full or locked, which is said by the caller once.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    return MlflowClient(tracking_uri=uri)


def experiment_id(client: Any, uri: str, name: str, folder: str | Path) -> str:
    """Identifier of the experiment called ``name``, which is made if it is not there.

    A sqlite store has no server to keep files: they lie in ``folder``/artifacts, not where one happens to be.
    """
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    artifacts = (Path(folder).resolve() / "artifacts").as_uri() if uri.startswith("sqlite:") else None
    return str(client.create_experiment(name, artifact_location=artifacts))


def metric_name(name: str) -> str:
    """``name`` with what MLflow does not take in one replaced."""
    return re.sub(r"[^\w/.\- :]", "_", name)[:_LONGEST_NAME]
