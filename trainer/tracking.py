"""MLflow, off the training thread.

What is to be recorded goes into a file of the run's folder (see ``spool``); a background thread sends it, in order. A
server that is slow or down delays metrics, never a step: what it has not taken when the run ends is sent when the run
goes on, or by ``segclip-doctor mlflow RUN``. Creating the default sqlite store, too, happens on that thread.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from segclip.console import words_of
from segclip.credentials import check_no_credentials, without_credentials
from segclip.mlflow_store import EXPERIMENT, LONGEST_VALUE, PARAMETERS_A_CALL, experiment_id, open_client
from segclip.trainer.spool import Spool

__all__ = ["Tracker", "TrackingConfig", "tracking_uri"]

log = logging.getLogger(__name__)
# Seconds between attempts to reach a server: doubled from the one to the other.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
# A record that a server answers with an error of its own so often in a row is given up.
MOST_ATTEMPTS = 20


class TrackingConfig(BaseModel):
    """Where the run is recorded."""

    # Values may be secrets that stand where they should not.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    enabled: bool = Field(True, description="Record the run in MLflow.")
    experiment: str = Field(
        EXPERIMENT, min_length=1, description="MLflow experiment that the run appears under."
    )
    uri: str | None = Field(
        None,
        description="Tracking server; null takes MLFLOW_TRACKING_URI, or else a sqlite file in the run folder.",
    )
    system_metrics: bool = Field(
        True, description="Record use of processor, memory, disk, network and GPUs of the first host, too."
    )
    flush_seconds: float = Field(60.0, gt=0, description="Longest wait for the server at the end of the run.")

    @model_validator(mode="after")
    def _no_secrets(self) -> Self:
        # Of the whole section, so that no message repeats the value of the field.
        remedy = (
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or all of it as MLFLOW_TRACKING_URI, in the "
            "environment, which is recorded nowhere"
        )
        check_no_credentials(self.uri or "", remedy)
        return self


def tracking_uri(config: TrackingConfig, run_dir: str | Path) -> str:
    """Config, then environment, then ``sqlite:///<run_dir>/mlflow.db``."""
    return (
        config.uri
        or os.environ.get("MLFLOW_TRACKING_URI")
        or f"sqlite:///{Path(run_dir).resolve() / 'mlflow.db'}"
    )


class Tracker:
    """One MLflow run, written by rank 0. Methods return at once; ``finish`` waits for what is still to be sent."""

    def __init__(
        self,
        config: TrackingConfig,
        run_dir: str | Path,
        run_name: str,
        run_id: str | None = None,
        *,
        training: bool = True,
    ) -> None:
        """
        Args:
            config: where to record.
            run_dir: folder of the run.
            run_name: shown in MLflow.
            run_id: of a run that is continued; otherwise what the run's folder remembers, or a new one.
            training: whether the run is going on, rather than what is left of it being sent.

        Raises:
            OSError: the run's folder cannot be written.
        """
        self._config = config
        self._run_dir = Path(run_dir)
        self._run_name = run_name
        self._training = training
        # Of the run, not of the store's first answer, which may take longer than a short run.
        self._begun = _now()
        self._spool = Spool(self._run_dir / "mlflow")
        if run_id is not None:
            self._spool.remember(run_id=run_id)
        self._client: Any = None
        self._monitor: Any = None
        self._connected = threading.Event()
        self._wake = threading.Event()
        self._closing = False
        self._refused = 0
        self._failure = ""
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    @property
    def run_id(self) -> str | None:
        """Identifier of the run, once the server has given one."""
        return self._spool.memory.get("run_id")

    def wait_for_run_id(self, seconds: float) -> str | None:
        """The identifier, waiting at most ``seconds`` for the server."""
        if self.run_id is None:
            self._connected.wait(seconds)
        return self.run_id

    def parameters(self, values: dict[str, Any]) -> None:
        """Log parameters; a resumed run may repeat those it has."""
        self._put("parameters", values={key: str(value)[:LONGEST_VALUE] for key, value in values.items()})

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Log numbers measured at ``step``."""
        self._put(
            "metrics", values={key: float(value) for key, value in values.items()}, step=step, time=_now()
        )

    def artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Store a file, or a folder with all it holds, with the run."""
        self._put("artifact", path=str(Path(path).resolve()), folder=folder)

    def evaluation(self, name: str, values: dict[str, float], step: int) -> None:
        """Log the numbers of an evaluation in a run of its own below this one, which those of the same name share."""
        numbers = {key: float(value) for key, value in values.items()}
        self._put("evaluation", name=name, values=numbers, step=step, time=_now())

    def finish(self, status: str = "FINISHED") -> None:
        """End the run and wait until all is sent, at most ``flush_seconds``; says so when something was not."""
        self._put("status", status=status, time=_now())
        waiting = self.drain()
        held = self._spool.held
        if waiting:
            log.warning(
                "MLflow has not taken %d records within %.0f s%s: they are kept in %s and sent when the run goes "
                "on, or by segclip-doctor mlflow %s%s",
                waiting,
                self._config.flush_seconds,
                f" ({self._failure})" if self._failure else "",
                self._spool.path,
                self._run_dir,
                f", but for the last {held}, which found no room on the disk and are lost" if held else "",
            )

    def drain(self) -> int:
        """Wait until all is sent, at most ``flush_seconds``; returns how many records are left."""
        self._closing = True
        self._wake.set()
        self._thread.join(self._config.flush_seconds)
        if self._refused:
            log.warning("MLflow refused %d records; the last error was: %s", self._refused, self._failure)
        return self._spool.waiting()

    def _put(self, kind: str, **fields: Any) -> None:
        self._spool.append({"kind": kind, **fields})
        self._wake.set()

    def _work(self) -> None:
        pause, failures, attempts = FIRST_PAUSE, 0, 0
        while True:
            self._wake.clear()
            following = self._spool.next()
            if following is None and self._client is not None:
                if self._closing:
                    break
                self._wake.wait()
                continue
            try:
                if self._client is None:
                    self._client = self._open()
                    self._connected.set()
                    continue
                assert following is not None
                if following[0] is not None:
                    self._send(following[0])
            except (
                Exception
            ) as error:  # whatever the server or its client raises, training goes on and says so
                self._failure = f"{type(error).__name__}: {_words(error)}"
                failures += 1
                # A server that is not there, however long, has refused no record.
                attempts += self._client is not None
                if self._client is None or (_passing(error) and attempts < MOST_ATTEMPTS):
                    if failures == 1:
                        log.warning(
                            "MLflow is not available (%s): records are kept in %s until it is",
                            self._failure,
                            self._spool.path,
                        )
                    if self._closing:
                        return
                    self._client = None
                    self._wait(pause)
                    pause = min(2 * pause, LONGEST_PAUSE)
                    continue
                self._refused += 1
            assert following is not None
            pause, failures, attempts = FIRST_PAUSE, 0, 0
            self._spool.sent(following[1])
        if self._monitor is not None:
            self._monitor.finish()

    def _wait(self, seconds: float) -> None:
        """Wait, but no longer than the run goes on."""
        until = time.monotonic() + seconds
        while not self._closing and (left := until - time.monotonic()) > 0:
            self._wake.wait(left)
            self._wake.clear()

    def _send(self, record: dict[str, Any]) -> None:
        from mlflow.entities import Metric, Param

        client, run_id = self._client, self.run_id
        kind = record["kind"]
        if kind == "parameters":
            known = client.get_run(run_id).data.params
            fresh = [Param(key, text) for key, text in record["values"].items() if key not in known]
            for begin in range(0, len(fresh), PARAMETERS_A_CALL):
                client.log_batch(run_id, params=fresh[begin : begin + PARAMETERS_A_CALL])
        elif kind in ("metrics", "evaluation"):
            if kind == "evaluation":
                run_id = self._child(record["name"], record["time"])
            metrics = [
                Metric(key, value, record["time"], record["step"]) for key, value in record["values"].items()
            ]
            client.log_batch(run_id, metrics=metrics)
            if kind == "evaluation":
                client.set_terminated(run_id, "FINISHED", record["time"])
        elif kind == "artifact":
            log_it = client.log_artifacts if Path(record["path"]).is_dir() else client.log_artifact
            log_it(run_id, record["path"], record["folder"])
        elif kind == "status" and (self._closing or not self._training):
            # One that an earlier process of this run has left says nothing of this one.
            client.set_terminated(run_id, record["status"], record["time"])

    def _child(self, name: str, started: int) -> str:
        """The run of evaluations of a name."""
        from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

        children: dict[str, str] = self._spool.memory.setdefault("children", {})
        if name not in children:
            parent = self._client.get_run(self.run_id)
            tags = {MLFLOW_PARENT_RUN_ID: self.run_id}
            made = self._client.create_run(parent.info.experiment_id, started, tags, run_name=name)
            children[name] = made.info.run_id
            self._spool.remember()
        return children[name]

    def _open(self) -> Any:
        uri = tracking_uri(self._config, self._run_dir)
        client = open_client(uri)
        from mlflow.exceptions import MlflowException

        if self.run_id is not None:
            try:
                if self._training:
                    client.update_run(self.run_id, status="RUNNING")
                else:
                    client.get_run(self.run_id)
                self._watch_system(uri)
                return client
            except MlflowException as error:
                if _passing(error):
                    raise
                log.warning(
                    "MLflow run %s cannot be continued (%s); a new one is started",
                    self.run_id,
                    _words(error),
                )
        place = experiment_id(client, uri, self._config.experiment, self._run_dir)
        made = client.create_run(place, start_time=self._begun, run_name=self._run_name)
        self._spool.remember(run_id=made.info.run_id, children={})
        self._watch_system(uri)
        return client

    def _watch_system(self, uri: str) -> None:
        """Let MLflow record use of processor, memory, disk, network and GPUs of this host."""
        if not (self._training and self._config.system_metrics) or self._monitor is not None:
            return
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._monitor = SystemMetricsMonitor(self.run_id, resume_logging=True, tracking_uri=uri)
        self._monitor.start()


def _passing(error: Exception) -> bool:
    """Whether a request may succeed later: the server is out of reach, busy or broken, not at odds with the record."""
    status = getattr(error, "get_http_status_code", None)
    code = status() if status is not None else None
    return (code is None and isinstance(error, OSError)) or (
        code is not None and (code >= 500 or code == 429)
    )


def _now() -> int:
    """Milliseconds since 1970, as MLflow counts."""
    return int(time.time() * 1000)


def _words(error: Exception) -> str:
    """What an error says; MLflow's repeat the server's URL."""
    return without_credentials(words_of(error))[:200]
