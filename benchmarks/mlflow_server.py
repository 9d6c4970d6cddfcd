"""A real MLflow server on this machine, for measurements and tests."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from segclip.rendezvous import free_port

__all__ = ["mlflow_server"]


@contextlib.contextmanager
def mlflow_server(
    folder: Path, port: int | None = None, store: str | None = None, seconds: float = 180
) -> Iterator[str]:
    """Address of a server on the loopback that lasts as long as the context.

    Args:
        folder: for its store and the files of runs.
        port: None takes a free one.
        store: another store than that of the folder, such as ``sqlite:///runs/mine/mlflow.db``.
        seconds: to wait for its first answer.

    Raises:
        RuntimeError: it does not answer.
    """
    port = port or free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", store or f"sqlite:///{folder}/server.db", "--workers", "1"]
    if store is None:
        command += ["--artifacts-destination", str(folder / "files")]
    environment = {
        **os.environ,
        # Nine more processes, each of which imports MLflow, for jobs that nobody asks for here.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, start_new_session=True
        )
    try:
        end = time.monotonic() + seconds
        while not _answers(address):
            if process.poll() is not None or time.monotonic() > end:
                said = log.read_text(encoding="utf-8", errors="replace")[-2000:]
                raise RuntimeError(f"no MLflow server at {address}: {said}")
            time.sleep(0.2)
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False
