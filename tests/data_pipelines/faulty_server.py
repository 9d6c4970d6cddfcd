"""An HTTP server that misbehaves as told, request by request."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

__all__ = ["Fault", "FaultyServer", "Request", "faulty_server"]

Fault = Callable[["Handler", bytes, tuple[int, int] | None], None]
"""Answers a request for content, whole or a range (first, one past last)."""


@dataclass(frozen=True)
class Request:
    """A GET the server saw: path, range asked for (None: all), and when."""

    path: str
    range: tuple[int, int] | None
    at: float


@dataclass
class FaultyServer:
    """What it holds and how it shall fail.

    Attributes:
        url: its address.
        content: bodies by path.
        faults: taken one by one, in order of arrival; after the last, requests are answered rightly.
        always: answers every request, if given, once ``faults`` are used up.
        requests: what was asked so far.
    """

    url: str = ""
    content: dict[str, bytes] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    always: Fault | None = None
    requests: list[Request] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next_fault(self) -> Fault:
        with self.lock:
            return self.faults.pop(0) if self.faults else (self.always or right)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server  # type: ignore[assignment]

    def do_GET(self) -> None:
        script = self.server.script
        wanted = _range(self.headers.get("Range"))
        with script.lock:
            script.requests.append(Request(self.path, wanted, time.monotonic()))
        body = script.content.get(self.path)
        if body is None:
            self.answer(404, b"not here")
            return
        script.next_fault()(self, body, wanted)

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        """A whole, well-formed answer."""
        self.head(status, len(body), headers)
        self.wfile.write(body)

    def head(self, status: int, length: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"ETag": '"1"', **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    script: FaultyServer

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients hang up on it by design


def _range(header: str | None) -> tuple[int, int] | None:
    if header is None:
        return None
    first, _, last = header.removeprefix("bytes=").partition("-")
    return int(first), int(last) + 1


def _part(body: bytes, wanted: tuple[int, int] | None) -> tuple[int, bytes, dict[str, str]]:
    if wanted is None:
        return 200, body, {}
    first, end = wanted[0], min(wanted[1], len(body))
    if first >= len(body):
        return 416, b"", {"Content-Range": f"bytes */{len(body)}"}
    return 206, body[first:end], {"Content-Range": f"bytes {first}-{end - 1}/{len(body)}"}


def right(handler: Handler, body: bytes, wanted: tuple[int, int] | None) -> None:
    """What was asked for."""
    status, part, headers = _part(body, wanted)
    handler.answer(status, part, headers)


def status(code: int, **headers: str) -> Fault:
    """An error status."""

    def fault(handler: Handler, body: bytes, wanted: tuple[int, int] | None) -> None:
        handler.answer(code, b"the server is busy", {k.replace("_", "-"): v for k, v in headers.items()})

    return fault


def reset_after(count: int) -> Fault:
    """Part of the body, then a reset connection."""

    def fault(handler: Handler, body: bytes, wanted: tuple[int, int] | None) -> None:
        code, part, headers = _part(body, wanted)
        handler.head(code, len(part), headers)
        handler.wfile.write(part[:count])
        handler.wfile.flush()
        time.sleep(0.05)
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.connection.close()
        handler.close_connection = True

    return fault


def trickle(handler: Handler, body: bytes, wanted: tuple[int, int] | None) -> None:
    """One byte a second."""
    code, part, headers = _part(body, wanted)
    handler.head(code, len(part), headers)
    for byte in part:
        handler.wfile.write(bytes([byte]))
        handler.wfile.flush()
        if handler.server.script.stopped.wait(1.0):
            return


def silent(handler: Handler, body: bytes, wanted: tuple[int, int] | None) -> None:
    """Half of the body, and then nothing more, the connection open."""
    code, part, headers = _part(body, wanted)
    handler.head(code, len(part), headers)
    handler.wfile.write(part[: len(part) // 2])
    handler.wfile.flush()
    handler.server.script.stopped.wait(60)


def slow_first_byte(seconds: float) -> Fault:
    """The right answer, late."""

    def fault(handler: Handler, body: bytes, wanted: tuple[int, int] | None) -> None:
        handler.server.script.stopped.wait(seconds)
        right(handler, body, wanted)

    return fault


def whole_body(handler: Handler, body: bytes, wanted: tuple[int, int] | None) -> None:
    """200 and everything, whatever the range."""
    handler.answer(200, body)


def short_range(handler: Handler, body: bytes, wanted: tuple[int, int] | None) -> None:
    """Less than was asked for, consistently declared."""
    if wanted is None:
        handler.answer(200, body[:-7])
        return
    right(handler, body, (wanted[0], min(wanted[1], len(body)) - 7))


def instead(content: bytes, content_type: str = "text/html") -> Fault:
    """Something else with status 200."""

    def fault(handler: Handler, body: bytes, wanted: tuple[int, int] | None) -> None:
        handler.answer(200, content, {"Content-Type": content_type})

    return fault


@contextmanager
def faulty_server() -> Iterator[FaultyServer]:
    """Run one on a free port of the loopback interface."""
    script = FaultyServer()
    with _Server(("127.0.0.1", 0), Handler) as server:
        server.script = script
        script.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield script
        finally:
            script.stopped.set()
            server.shutdown()
            thread.join(10)
