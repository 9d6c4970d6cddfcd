"""Reading an object in parallel ranges, each retried from where it broke off."""

from __future__ import annotations

import threading
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from datetime import timedelta
from typing import Any, Protocol

import obstore

from segclip.data_pipelines.counters import Counters
from segclip.data_pipelines.errors import REPAIR, StoreError
from segclip.data_pipelines.storage.buffers import buffer
from segclip.data_pipelines.storage.config import StoreConfig
from segclip.data_pipelines.storage.retry import THROTTLED, Attempts, RetryPolicy, Stall, Throttle, cause_of

__all__ = ["ObjectReader", "RangedReader", "reading_options", "recognise"]

# What arrives of a broken range is kept in pieces of this size.
CHUNK = 256 << 10
# Of a whole body whose length nobody has stated.
WHOLE_SECONDS = 600.0
# After so many whole bodies in place of ranges, a store is not asked for ranges any more.
WHOLE_ANSWERS = 3
_TEXT_LIKE = (b"<!doctype", b"<html", b"<?xml")


def reading_options(settings: StoreConfig, size: int | None) -> dict[str, timedelta]:
    """Time limits of a request for ``size`` bytes (None: unknown), as obstore's client takes them."""
    whole = WHOLE_SECONDS if size is None else settings.stall_seconds + size / (settings.min_rate_kib << 10)
    return {
        "connect_timeout": timedelta(seconds=settings.connect_seconds),
        "read_timeout": timedelta(seconds=settings.stall_seconds),
        "timeout": timedelta(seconds=whole),
    }


def recognise(content: bytes | bytearray | memoryview, where: str) -> None:
    """Raise ``StoreError`` if a shard or manifest is in truth nothing at all, or a page of text from a proxy."""
    if not len(content):
        raise StoreError("empty", f"{where} is empty: upload it again")
    start = bytes(content[:64]).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(_TEXT_LIKE):
        raise StoreError(
            "web_page",
            f"{where} is a web page and no data: check the URL, and whether a login page or a proxy answers "
            "in the store's place",
        )


class ObjectReader(Protocol):
    """Reads objects of one store by their path."""

    def read(self, path: str, size: int | None = None) -> memoryview: ...


class _Identity:
    """Size and version that all ranges of an object have to share."""

    def __init__(self, where: str, size: int | None) -> None:
        self._where, self.size, self._tag = where, size, None
        self._lock = threading.Lock()

    def check(self, meta: Any) -> None:
        with self._lock:
            if self.size is None:
                self.size = meta["size"]
            if meta["size"] != self.size:
                raise StoreError("length", _wrong_length(self._where, meta["size"], self.size))
            self._tag = self._tag or meta["e_tag"]
            if meta["e_tag"] != self._tag:
                raise StoreError("length", f"{self._where} was replaced while it was read: start again")


def _wrong_length(where: str, found: int, expected: int) -> str:
    return f"{where} has {found} bytes where {expected} are expected: {REPAIR}"


class RangedReader:
    """Reads objects of one store. Threads start with the first read, so a process may fork before it."""

    def __init__(
        self,
        client: Any,
        whole_client: Any,
        url: str,
        settings: StoreConfig,
        counters: Counters,
        throttle: Throttle,
    ) -> None:
        """
        Args:
            client: obstore client for ranges, without retries of its own.
            whole_client: the same with the time limit of a whole object.
            url: of the store, for messages.
            settings: sizes, time limits, retries.
            counters: what is added to.
            throttle: knows how long a busy server wants to be left alone.
        """
        self._client, self._whole_client, self._url = client, whole_client, url
        self._part = settings.range_mib << 20
        self._connections = settings.connections
        self._policy = RetryPolicy(settings.retries, settings.retry_seconds)
        self._counters, self._throttle = counters, throttle
        self._stall = Stall(url, settings.stall_seconds)
        self._threads: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        # Answers in a row that gave everything where a range was asked for. One may be a proxy's hiccup.
        self._whole_answers = 0

    def read(self, path: str, size: int | None = None) -> memoryview:
        """A whole object.

        Args:
            path: below the store's URL.
            size: its length where that is known; another length is an error then.

        Raises:
            StoreError: of the length, or of what the object is.
            FileNotFoundError, PermissionError, obstore.exceptions.BaseError: of the last attempt.
        """
        if self._whole_answers < WHOLE_ANSWERS and size != 0:
            try:
                content = self._read_ranges(path, size)
                self._whole_answers = 0
                return content
            except (obstore.exceptions.BaseError, OSError) as error:
                # 416: an object without any byte has no range either.
                if cause_of(error) not in ("whole", "status_416"):
                    raise
        content = self._read_whole(path, size)
        self._whole_answers += 1
        return content

    def _read_ranges(self, path: str, size: int | None) -> memoryview:
        stop = threading.Event()
        identity = _Identity(f"{self._url}/{path}", size)
        if size is None:
            head = buffer(self._part)
            done = self._fill(path, head, 0, self._part, identity, stop)
            assert identity.size is not None
            if identity.size <= done:
                return head[:done]
            content = buffer(identity.size)
            content[:done] = head
            del head
        else:
            content, done = buffer(size), 0
        part = self._part_of(len(content) - done)
        starts = range(done, len(content), part)
        if len(starts) == 1:
            self._fill(path, content, done, len(content), identity, stop)
            return content
        pending = [
            self._pool().submit(
                self._fill, path, content, start, min(start + part, len(content)), identity, stop
            )
            for start in starts
        ]
        try:
            finished, _ = wait(pending, return_when=FIRST_EXCEPTION)
        finally:
            # The first error ends the other ranges too, at their next piece.
            if any(not each.done() or each.exception() for each in pending):
                stop.set()
                for each in pending:
                    each.cancel()
                wait(pending)
        for each in finished:
            each.result()
        return content

    def _part_of(self, length: int) -> int:
        """Size of the ranges of ``length`` bytes: the one set, or less, so that all connections end together."""
        parts = -(-length // self._part)
        if parts > self._connections:
            parts = -(-parts // self._connections) * self._connections
        return max(1, -(-length // max(1, parts)))

    def _fill(
        self, path: str, view: memoryview, start: int, end: int, identity: _Identity, stop: threading.Event
    ) -> int:
        """Read bytes ``start`` to ``end`` into their place; returns where the object or the range ends."""
        attempts = Attempts(self._policy, self._counters, stop)
        at = start
        while at < end and not stop.is_set():
            if stop.wait(self._throttle.left()):
                break
            try:
                result = obstore.get(self._client, path, options={"range": (at, end)})
                identity.check(result.meta)
                end = min(end, identity.size or 0)
                for piece in result.stream(min_chunk_size=CHUNK):
                    if at + len(piece) > end:
                        raise StoreError("length", f"{self._url}/{path}: more bytes came than were asked for")
                    view[at : at + len(piece)] = piece
                    at += len(piece)
                    self._counters.add("store/bytes", len(piece))
                    attempts.progress()
                    self._stall.over()
                    if stop.is_set():
                        break
                else:
                    if at < end:
                        raise StoreError(
                            "length", f"{self._url}/{path}: the range ends at byte {at} of {end}"
                        )
            except (StoreError, OSError, obstore.exceptions.BaseError) as error:
                self._retry(attempts, error, path)
        return at

    def _read_whole(self, path: str, size: int | None) -> memoryview:
        """The object in one request, for servers that know no ranges."""
        attempts = Attempts(self._policy, self._counters, threading.Event())
        where = f"{self._url}/{path}"
        while True:
            try:
                content = bytearray()
                for piece in obstore.get(self._whole_client, path).stream(min_chunk_size=CHUNK):
                    content += piece
                    self._counters.add("store/bytes", len(piece))
                if size is not None and len(content) != size:
                    recognise(content, where)
                    raise StoreError("length", _wrong_length(where, len(content), size))
                self._counters.add("store/whole_bodies")
                return memoryview(content)
            except (StoreError, OSError, obstore.exceptions.BaseError) as error:
                self._retry(attempts, error, path)

    def _retry(self, attempts: Attempts, error: Exception, path: str) -> None:
        cause = cause_of(error)
        if cause in ("whole", "status_416"):
            raise error
        self._stall.failed(cause, attempts.seconds)
        attempts.failed(error, cause, self._throttle.pause(path) if cause in THROTTLED else 0.0)

    def _pool(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(self._connections, thread_name_prefix="ranges")
            return self._threads
