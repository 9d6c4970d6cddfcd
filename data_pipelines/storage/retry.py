"""When and how long to wait before asking a store again.

obstore's own retries (exponential, with jitter) serve where a request is small or writes. Reads are retried
here instead, because three things are asked of them that obstore 0.12 does not do: each retry is counted by
cause, ``Retry-After`` is honoured, and a stalled range is given up long before the whole request's time is
over.
"""

from __future__ import annotations

import email.utils
import http.client
import logging
import random
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass

import obstore

from segclip.data_pipelines.counters import Counters
from segclip.data_pipelines.errors import StoreError

__all__ = [
    "EXPIRED",
    "THROTTLED",
    "Attempts",
    "RetryPolicy",
    "Stall",
    "Throttle",
    "cause_of",
    "parse_retry_after",
]

log = logging.getLogger(__name__)
THROTTLED = frozenset({"status_429", "status_503"})
# S3 says so with status 400, as if the request were malformed.
EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"})
_FINAL = frozenset({"missing", "denied"})
# A length that differs may be a hiccup of a proxy, or the object has changed, which no waiting mends.
_LENGTH_RETRIES = 2
_LENGTH_LIKE = frozenset({"length", "empty", "web_page"})
_STATUS = re.compile(r"status code: (\d{3})")


def cause_of(error: BaseException) -> str:
    """One word for why a request failed: ``missing``, ``denied``, ``whole``, ``length``, ``timeout``,
    ``status_NNN``, ``connection``; ``whole`` says that the server knows no ranges."""
    if isinstance(error, StoreError):
        return error.cause
    if isinstance(error, FileNotFoundError):
        return "missing"
    if isinstance(
        error,
        PermissionError | obstore.exceptions.PermissionDeniedError | obstore.exceptions.UnauthenticatedError,
    ):
        return "denied"
    text = str(error)
    if any(f"<Code>{code}</Code>" in text for code in EXPIRED):
        return "denied"
    if isinstance(error, obstore.exceptions.NotSupportedError) and "ange" in text:
        return "whole"
    if "UnexpectedRange" in text:
        return "length"
    if (status := _STATUS.search(text)) is not None:
        return f"status_{status[1]}"
    return "timeout" if "TimedOut" in text or "Timeout" in text else "connection"


def _retryable(cause: str) -> bool:
    if cause.startswith("status_"):
        return cause in ("status_408", "status_429") or cause >= "status_500"
    return cause not in _FINAL


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential delays with jitter.

    Attributes:
        retries: attempts after the first that may fail in a row.
        seconds: no attempt begins later than this after the last progress.
        first_delay, longest_delay: seconds; the delay doubles from one to the other, and a random half is left
            out of each so that many readers do not come back at once.
    """

    retries: int
    seconds: float
    first_delay: float = 0.2
    longest_delay: float = 15.0

    def delay(self, failures: int, draw: float) -> float:
        """Seconds before the next attempt, after ``failures`` in a row; ``draw`` is uniform in [0, 1)."""
        whole = min(self.longest_delay, self.first_delay * 2 ** min(failures - 1, 30))
        return whole * (1 - 0.5 * draw)


class Throttle:
    """How long a busy server wants to be left alone, for all requests to it.

    The client does not show the headers of an error. So after a 429 or 503 one byte is asked for by other means,
    once for all waiting requests, and the ``Retry-After`` of that answer is what they keep to.
    """

    def __init__(self, locate: Callable[[str], str], timeout: float) -> None:
        """
        Args:
            locate: gives the plain or signed URL of an object; it is used, never shown.
            timeout: longest wait for the answer in seconds.
        """
        self._locate, self._timeout = locate, timeout
        self._lock = threading.Lock()
        self._until = 0.0

    def pause(self, path: str) -> float:
        """Seconds from now in which the server does not want to be asked; 0 where it does not say."""
        with self._lock:
            if (left := self.left()) > 0:
                return left
            wait = self._ask(path)
            self._until = time.monotonic() + wait
            return wait

    def left(self) -> float:
        """Seconds that remain of the last pause the server asked for."""
        return max(0.0, self._until - time.monotonic())

    def _ask(self, path: str) -> float:
        try:
            request = urllib.request.Request(self._locate(path), headers={"Range": "bytes=0-0"})
            with urllib.request.urlopen(request, timeout=self._timeout):
                return 0.0
        except urllib.error.HTTPError as error:
            with error:
                return parse_retry_after(error.headers.get("Retry-After"), time.time())
        except (OSError, ValueError, http.client.HTTPException, obstore.exceptions.BaseError):
            return 0.0  # it cannot be learned: the request itself is retried with a growing delay


def parse_retry_after(header: str | None, now: float) -> float:
    """Seconds that a ``Retry-After`` header asks for, given as seconds or as a date; 0 for none or nonsense."""
    if header is None:
        return 0.0
    header = header.strip()
    if header.isdecimal():
        return float(header)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - now)
    except ValueError:
        return 0.0


class Stall:
    """Says, now and then, that a store gives nothing, and that it does again. For all reads of a process."""

    def __init__(self, url: str, seconds: float) -> None:
        """
        Args:
            url: of the store.
            seconds: a stall is said when it is so long, and again each time it has doubled.
        """
        self._url, self._first = url, seconds
        self._next = seconds
        self._last = 0.0
        self._lock = threading.Lock()

    def failed(self, cause: str, seconds: float) -> None:
        """A request has failed, to which nothing arrived for some seconds."""
        with self._lock:
            # Others may fare better.
            seconds = min(seconds, time.monotonic() - self._last)
            if seconds >= self._next:
                self._next = 2 * seconds
                log.warning("%s gives nothing for %.0f s (%s); it is asked again", self._url, seconds, cause)

    def over(self) -> None:
        """Something arrived."""
        self._last = time.monotonic()
        if self._next > self._first:  # asked without the lock, as this is called for every piece that arrives
            with self._lock:
                said, self._next = self._next > self._first, self._first
            if said:
                log.warning("%s answers again", self._url)


class Attempts:
    """The attempts at one read: counts failures, waits between them, gives up."""

    def __init__(self, policy: RetryPolicy, counters: Counters, stop: threading.Event) -> None:
        self._policy, self._counters, self._stop = policy, counters, stop
        self._failures = 0
        self._causes: list[str] = []
        self._begin = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since something arrived."""
        return time.monotonic() - self._begin

    def progress(self) -> None:
        """Something arrived: failures before it no longer count."""
        self._failures = 0
        self._begin = time.monotonic()

    def failed(self, error: BaseException, cause: str, pause: float = 0.0) -> None:
        """Wait until the next attempt may begin, or raise ``error`` again if there shall be none.

        Args:
            error: what went wrong.
            cause: its cause, by ``cause_of``.
            pause: seconds that the server asked for.
        """
        self._failures += 1
        self._causes.append(cause)
        delay = pause + self._policy.delay(self._failures, random.random())
        allowed = self._policy.retries
        if cause in _LENGTH_LIKE and self._causes.count(cause) > _LENGTH_RETRIES:
            allowed = 0
        late = self.seconds + delay > self._policy.seconds
        if not _retryable(cause) or self._failures > allowed or late:
            raise error
        self._counters.add(f"store/retries/{cause}")
        if self._stop.wait(delay):
            raise error
