"""Object stores by URL: ``file://``, ``s3://`` and what else obstore knows, with retries and timeouts.

Objects of remote stores are read in parallel ranges (see ``ranges``).

Credentials and endpoints come from the standard environment variables (``AWS_ACCESS_KEY_ID``,
``AWS_ENDPOINT_URL``, ...), or else from the standard files (``~/.aws``, ``GOOGLE_APPLICATION_CREDENTIALS``), and from
nowhere else: they are never part of a configuration.

The client runs on a thread pool that does not survive ``fork``. A process that has used it may not fork
children that use it again: ``client_started`` tells, ``read_before_fork`` reads a small object without starting it.
"""

from __future__ import annotations

import multiprocessing
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import quote

import obstore
import obstore.store

from segclip.data_pipelines.counters import Counters
from segclip.data_pipelines.errors import StoreError
from segclip.data_pipelines.storage.aws_profile import aws_profile, has_credentials
from segclip.data_pipelines.storage.buffers import read_file
from segclip.data_pipelines.storage.config import StoreConfig
from segclip.data_pipelines.storage.pipes import PipeReader
from segclip.data_pipelines.storage.ranges import ObjectReader, RangedReader, reading_options, recognise
from segclip.data_pipelines.storage.retry import EXPIRED, Throttle, cause_of
from segclip.data_pipelines.storage.urls import local_path, normalise_url

__all__ = [
    "Entry",
    "Store",
    "client_started",
    "open_store",
    "read_before_fork",
    "upload",
]

# A large file is sent in at most 10,000 parts, side by side.
PART_BYTES = 8 << 20
MOST_PARTS = 9000
# Of writing and listing, which obstore itself retries: a whole request, body included.
REQUEST_TIMEOUT = timedelta(seconds=120)
WRITE_RETRIES = 6
# Of a manifest: an endpoint that is down, or up and silent, is given up within ten seconds.
SMALL = StoreConfig(connect_seconds=3, stall_seconds=4, retries=6, retry_seconds=5)
# How long the signed URL may be used that asks a busy server how long to wait.
SIGNED_FOR = timedelta(seconds=60)
# Objects that are data and never text with tags.
_DATA_ENDINGS = (".tar", ".json", ".parquet")

# What may hold a signature in a URL of an error.
_QUERY = re.compile(r"(?<=\S)\?[^\s\"']+")

# The word for an error in an answer of S3.
_CODE = re.compile(r"<Code>(\w+)</Code>")
_CHECK_ACCESS = "check its permissions and the credentials"
_DENIALS = {
    **dict.fromkeys(EXPIRED, "the credentials have expired: renew them, and start the same command again"),
    "RequestTimeTooSkewed": "the clock of this machine differs from the store's: set it",
}

T = TypeVar("T")
_client_pid: int | None = None


@dataclass(frozen=True)
class Entry:
    """An object of a store: its path below the store's URL, its size, and when it was written."""

    path: str
    size: int
    modified: datetime | None = field(default=None, compare=False)


def client_started() -> bool:
    """Whether this process has used the client, so that its forked children may not."""
    return _client_pid is not None


@dataclass(frozen=True)
class Store:
    """A folder of objects behind a URL. Every failure is a ``StoreError`` (a ``ValueError``) that names URL and
    remedy.

    Attributes:
        url: where the objects lie.
        client: obstore's client for writing and listing, and for local files.
        counters: bytes read, retries by cause.
        reader: reads objects of remote stores and pipes; None for local files.
    """

    url: str
    client: Any
    counters: Counters = field(default_factory=Counters)
    reader: ObjectReader | None = None

    def get(self, path: str, size: int | None = None) -> memoryview:
        """The whole object, writable so that tensors can be views of it.

        Args:
            path: below the store's URL.
            size: its length in bytes where that is known; one request less is needed then, and another length
                is an error.

        Raises:
            StoreError: it is missing, denied, out of reach, of another length, empty or a web page.
        """
        if isinstance(self.reader, PipeReader):
            content = self.reader.read(path, size)
        else:
            content = self._call(lambda: self._read(path, size), path)
        if path.endswith(_DATA_ENDINGS):
            recognise(content, f"{self.url}/{path}")
        return content

    def put(self, path: str, content: bytes) -> None:
        """Write an object; on a local disk under a temporary name first."""
        self._refuse_pipe()
        self._call(lambda: obstore.put(self.client, path, content), path)

    def put_file(self, path: str, file: Path) -> None:
        """Write an object from a file of any size; it is there as a whole or not at all."""
        self._refuse_pipe()
        size = max(PART_BYTES, file.stat().st_size // MOST_PARTS)
        self._call(lambda: obstore.put(self.client, path, file, chunk_size=size), path)

    def pieces(self, path: str, size: int, piece: int = 32 << 20) -> Iterator[memoryview]:
        """An object of ``size`` bytes, piece by piece, for what is larger than memory."""
        self._refuse_pipe()
        for start in range(0, size, piece):
            length = min(piece, size - start)
            yield memoryview(self._call(partial(self._piece, path, start, length), path))

    def _piece(self, path: str, start: int, length: int) -> obstore.Bytes:
        return obstore.get_range(self.client, path, start=start, length=length)

    def delete(self, paths: Sequence[str]) -> None:
        """Remove objects."""
        self._refuse_pipe()
        if paths:
            self._call(lambda: obstore.delete(self.client, [*paths]), "")

    def list(self, folder: str | None = None) -> Iterator[Entry]:
        """All objects below the URL, or below a folder there, sorted by path."""
        self._refuse_pipe()
        listed = self._call(lambda: [each for part in obstore.list(self.client, folder) for each in part], "")
        entries = (Entry(each["path"], each["size"], each["last_modified"]) for each in listed)
        yield from sorted(entries, key=lambda entry: entry.path)

    def list_if_allowed(self) -> tuple[Entry, ...] | None:
        """``list``, or None where the store has no lists (HTTP, pipes) or does not allow them."""
        if self.client is None or isinstance(self.client, obstore.store.HTTPStore):
            return None
        try:
            return tuple(self.list())
        except StoreError as error:
            if error.cause != "denied":
                raise
            return None

    def _refuse_pipe(self) -> None:
        if self.client is None:
            raise ValueError(f"{self.url!r} can only be read from: give the URL of a store")

    def _read(self, path: str, size: int | None) -> memoryview:
        if self.reader is not None:
            return self.reader.read(path, size)
        folder = local_path(self.url)
        assert folder is not None
        if path.startswith("/") or ".." in path.split("/"):
            raise StoreError("missing", f"{path!r} leads out of {self.url}: give a path below it")
        file = folder / path
        if not file.is_file():
            raise FileNotFoundError(file)
        content = read_file(file)
        self.counters.add("store/bytes", len(content))
        return content

    def _call(self, action: Callable[[], T], path: str) -> T:
        global _client_pid
        if _client_pid is not None and _client_pid != os.getpid():
            raise RuntimeError(
                "the object store client was started before this process was forked and would hang"
            )
        _client_pid = os.getpid()
        where = f"{self.url}/{path}".rstrip("/")
        try:
            return action()
        except (obstore.exceptions.BaseError, OSError) as error:
            cause = cause_of(error)
            if cause == "missing":
                raise StoreError(cause, f"{where} does not exist: check the data URL") from error
            if cause == "denied":
                raise StoreError(cause, f"access to {where} is denied{_denial(error)}") from error
            message = f"{where} cannot be reached: {_short(error)}. {_remedy(self.url)}"
            raise StoreError(cause, message) from error


def _short(error: BaseException) -> str:
    """The first sentence of a client's message, without signatures: what follows is a dump of the request."""
    text = " ".join(str(error).split("Debug source:")[0].split())
    text = _QUERY.sub("?...", text)
    return text[:300].rstrip(" .,:")


def _denial(error: BaseException) -> str:
    """Why access is denied, in the store's word where it gives one, and what to do."""
    word = _CODE.search(str(error))
    if word is None:
        return f": {_CHECK_ACCESS}"
    return f" ({word[1]}): {_DENIALS.get(word[1], _CHECK_ACCESS)}"


def _remedy(url: str) -> str:
    if url.startswith("s3://"):
        endpoint = _endpoint(aws_profile()) or "not set: Amazon S3"
        none = (
            ""
            if has_credentials()
            else "No credentials were found, neither in the environment nor in ~/.aws. "
        )
        return f"{none}Check AWS_ENDPOINT_URL ({endpoint}), AWS_REGION, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    return "Check the URL, the network and the credentials in the environment"


def open_store(
    url: str,
    *,
    create: bool = False,
    settings: StoreConfig | None = None,
    counters: Counters | None = None,
    allow_pipe: bool = False,
) -> Store:
    """The store at ``url`` (or at a local path).

    Args:
        url: where the objects lie.
        create: make a local folder that does not exist.
        settings: sizes and time limits of reading.
        counters: what reading adds to.
        allow_pipe: let ``pipe:COMMAND {}`` run; such a store can only be read.

    Raises:
        ValueError: bad URL, or a local folder that does not exist.
    """
    settings, counters = settings or StoreConfig(), counters or Counters()
    url = normalise_url(url, allow_pipe=allow_pipe)
    if url.startswith("pipe:"):
        return Store(url, None, counters, PipeReader(url, counters))
    folder = local_path(url)
    if folder is not None:
        if create:
            folder.mkdir(parents=True, exist_ok=True)
        elif not folder.is_dir():
            raise ValueError(
                f"the data folder {folder} does not exist: check the path, or write shards to it first"
            )
        return Store(url, obstore.store.LocalStore(str(folder)), counters)
    connect = {"connect_timeout": timedelta(seconds=settings.connect_seconds)}
    client = _client(url, {**connect, "timeout": REQUEST_TIMEOUT}, WRITE_RETRIES, settings.retry_seconds)
    ranges, whole = (
        _client(url, reading_options(settings, size), 0, settings.retry_seconds)
        for size in (settings.range_mib << 20, None)
    )
    throttle = Throttle(lambda path: _location(url, client, path), settings.stall_seconds)
    return Store(url, client, counters, RangedReader(ranges, whole, url, settings, counters, throttle))


def _client(url: str, options: dict[str, Any], retries: int, retry_seconds: float) -> Any:
    """obstore's client for a remote URL."""
    profile = aws_profile() if url.startswith("s3://") else {}
    if url.startswith("http://") or (url.startswith("s3://") and _endpoint(profile).startswith("http://")):
        options = {**options, "allow_http": True}
    retry: Any = {"max_retries": retries, "retry_timeout": timedelta(seconds=retry_seconds)}
    try:
        return obstore.store.from_url(
            url, config=cast(Any, profile), client_options=cast(Any, options), retry_config=retry
        )
    except (obstore.exceptions.BaseError, ValueError) as error:
        raise ValueError(f"{url} cannot be opened: {_short(error)}. {_remedy(url)}") from error


def _endpoint(profile: Mapping[str, str]) -> str:
    """Where S3 is, by the environment or else by a profile; empty for Amazon's."""
    return (
        os.environ.get("AWS_ENDPOINT_URL")
        or os.environ.get("AWS_ENDPOINT")
        or profile.get("aws_endpoint", "")
    )


def _location(url: str, client: Any, path: str) -> str:
    """An HTTP URL of an object, signed where the store wants that. It is a secret: never show it."""
    if url.startswith("http"):
        return f"{url}/{quote(path)}"
    return str(obstore.sign(client, "GET", path, expires_in=SIGNED_FOR))


def read_before_fork(url: str, path: str, *, allow_pipe: bool = False) -> bytes:
    """One small object, read without starting the client in this process, which may go on to fork workers.

    Local files are read directly, others in a short-lived child.
    """
    url = normalise_url(url, allow_pipe=allow_pipe)
    if url.startswith("pipe:"):
        return bytes(PipeReader(url, Counters()).read(path))
    folder = local_path(url)
    if folder is not None:
        file = folder / path
        if not file.is_file():
            raise ValueError(f"{file} does not exist: check the data path, or write shards there first")
        return file.read_bytes()
    if client_started():
        return bytes(open_store(url, settings=SMALL).get(path))
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_read_into, args=(url, path, sender), daemon=True)
    child.start()
    sender.close()
    try:
        outcome = receiver.recv()
    except EOFError:
        raise RuntimeError(f"the process that read {url}/{path} died (exit code {child.exitcode})") from None
    finally:
        child.join()
        receiver.close()
    if isinstance(outcome, str):
        raise ValueError(outcome)
    return bytes(outcome)


def _read_into(url: str, path: str, sender: Connection) -> None:
    try:
        sender.send(bytes(open_store(url, settings=SMALL).get(path)))
    except ValueError as error:
        sender.send(str(error))


def upload(folder: Path, url: str, report: Callable[[Entry], None] = lambda entry: None) -> int:
    """Copy every file below ``folder`` to ``url``, manifests last, so that what a manifest names is there.

    Returns:
        Number of files copied.
    """
    if not folder.is_dir():
        raise ValueError(f"the folder {folder} to upload does not exist")
    files = sorted(
        (path for path in folder.rglob("*") if path.is_file()), key=lambda p: (p.suffix == ".json", str(p))
    )
    if not files:
        raise ValueError(f"the folder {folder} to upload is empty")
    target = open_store(url, create=True)
    for file in files:
        name = file.relative_to(folder).as_posix()
        target.put(name, file.read_bytes())
        report(Entry(name, file.stat().st_size))
    return len(files)
