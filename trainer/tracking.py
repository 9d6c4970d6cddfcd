"""MLflow, off the training thread.

All calls to the tracking server happen on one background thread, in order: a server that is slow or down delays
metrics, never a step. Creating the default sqlite store, too, happens there.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Tracker", "TrackingConfig", "tracking_uri"]

log = logging.getLogger(__name__)
PARAMETERS_A_CALL = 100  # MLflow's limit for one batch
LONGEST_VALUE = 6000  # MLflow's limit for one parameter


class TrackingConfig(BaseModel):
    """Where the run is recorded."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = Field(True, description="Record the run in MLflow.")
    experiment: str = Field(
        "segclip", min_length=1, description="MLflow experiment that the run appears under."
    )
    uri: str | None = Field(
        None,
        description="Tracking server; null takes MLFLOW_TRACKING_URI, or else a sqlite file in the run folder.",
    )
    flush_seconds: float = Field(60.0, gt=0, description="Longest wait for the server at the end of the run.")


def tracking_uri(config: TrackingConfig, run_dir: str | Path) -> str:
    """Config, then environment, then ``sqlite:///<run_dir>/mlflow.db``."""
    return (
        config.uri
        or os.environ.get("MLFLOW_TRACKING_URI")
        or f"sqlite:///{Path(run_dir).resolve() / 'mlflow.db'}"
    )


class Tracker:
    """One MLflow run, written by rank 0. Methods return at once; ``finish`` waits for what is still queued."""

    def __init__(
        self, config: TrackingConfig, run_dir: str | Path, run_name: str, run_id: str | None = None
    ) -> None:
        self._config = config
        self._run_dir = Path(run_dir)
        self._run_name = run_name
        self._run_id = run_id
        self._started = threading.Event()
        self._failure: str | None = None
        self._failures = 0
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    @property
    def run_id(self) -> str | None:
        """Identifier of the run, once the server has given one."""
        return self._run_id

    def wait_for_run_id(self, seconds: float) -> str | None:
        """The identifier, waiting at most ``seconds`` for the server."""
        self._started.wait(seconds)
        return self._run_id

    def parameters(self, values: dict[str, Any]) -> None:
        """Log parameters; a resumed run may repeat those it has."""
        texts = {key: str(value)[:LONGEST_VALUE] for key, value in values.items()}

        def send() -> None:
            from mlflow.entities import Param

            known = self._client.get_run(self._run_id).data.params
            fresh = [Param(key, text) for key, text in texts.items() if key not in known]
            for begin in range(0, len(fresh), PARAMETERS_A_CALL):
                self._client.log_batch(self._run_id, params=fresh[begin : begin + PARAMETERS_A_CALL])

        self._jobs.put(send)

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Log numbers measured at ``step``."""
        timestamp = int(time.time() * 1000)

        def send() -> None:
            from mlflow.entities import Metric

            self._client.log_batch(
                self._run_id,
                metrics=[Metric(key, float(value), timestamp, step) for key, value in values.items()],
            )

        self._jobs.put(send)

    def artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Store a file, or a folder with all it holds, with the run."""
        path = Path(path)

        def send() -> None:
            log_it = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
            log_it(self._run_id, str(path), folder)

        self._jobs.put(send)

    def finish(self, status: str = "FINISHED") -> None:
        """End the run and wait for the queue, at most ``flush_seconds``; says so when something was not recorded."""
        self._jobs.put(lambda: self._client.set_terminated(self._run_id, status))
        self._jobs.put(None)
        self._thread.join(self._config.flush_seconds)
        if self._thread.is_alive():
            log.warning(
                "MLflow did not answer within %.0f s: %d records were not sent",
                self._config.flush_seconds,
                self._jobs.qsize(),
            )
        elif self._failures:
            log.warning("MLflow refused %d records; the first error was: %s", self._failures, self._failure)

    def _work(self) -> None:
        try:
            self._open()
        except Exception as error:  # whatever the server or its client raises, training goes on and says so
            self._note(error)
            log.warning("MLflow is not available, this run is not recorded: %s", self._failure)
            return
        finally:
            self._started.set()
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception as error:  # counted, and reported by finish()
                self._note(error)

    def _note(self, error: Exception) -> None:
        self._failures += 1
        self._failure = self._failure or f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"

    def _open(self) -> None:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        uri = tracking_uri(self._config, self._run_dir)
        self._client = MlflowClient(tracking_uri=uri)
        if self._run_id is not None:
            try:
                self._client.update_run(self._run_id, status="RUNNING")
                return
            except MlflowException as error:
                log.warning(
                    "MLflow run %s cannot be continued (%s); a new one is started",
                    self._run_id,
                    one_line_of(error),
                )
        experiment = self._client.get_experiment_by_name(self._config.experiment)
        if experiment is not None:
            experiment_id = experiment.experiment_id
        else:
            # A sqlite store has no server to keep files: they lie beside it, not in the folder one happens to be in.
            artifacts = (
                (self._run_dir.resolve() / "artifacts").as_uri() if uri.startswith("sqlite:") else None
            )
            experiment_id = self._client.create_experiment(
                self._config.experiment, artifact_location=artifacts
            )
        self._run_id = self._client.create_run(experiment_id, run_name=self._run_name).info.run_id


def one_line_of(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
