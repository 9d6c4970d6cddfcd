"""A proxy before a real HTTP server that spoils or delays some of its answers, or is away for a while."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

__all__ = [
    "Answer",
    "Fault",
    "FaultyProxy",
    "away",
    "error_status",
    "faulty_proxy",
    "late",
    "reset",
    "silence",
]

# Said by each hop for itself.
_HOP = ("connection", "keep-alive", "transfer-encoding", "content-length")


@dataclass(frozen=True)
class Answer:
    """What the server behind has answered."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


Fault = Callable[["Handler", Callable[[], Answer]], None]
"""Answers a request in its own way; it may ask the server behind first."""


@dataclass
class FaultyProxy:
    """Where it listens and how it shall fail.

    Attributes:
        behind: ``host:port`` of the server.
        url: its own address.
        matches: which requests may fail, by method and path.
        plan: fault by number of the request among those that match, from 0.
        always: answers all that match from now on, if given.
        asked: requests that matched, so far.
        fired: numbers of the requests that failed by plan.
    """

    behind: str
    url: str = ""
    matches: Callable[[str, str], bool] = lambda method, path: True
    plan: dict[int, Fault] = field(default_factory=dict)
    always: Fault | None = None
    asked: int = 0
    fired: list[int] = field(default_factory=list)
    closed: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    connections: set[socket.socket] = field(default_factory=set)
    server: _Server | None = None

    def fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            if not self.matches(method, path):
                return None
            number, self.asked = self.asked, self.asked + 1
            if number in self.plan:
                self.fired.append(number)
                return self.plan[number]
            return self.always

    def open(self, port: int = 0) -> None:
        """Listen."""
        self.server = _Server(("127.0.0.1", port), Handler)
        self.server.proxy = self
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()

    def close(self) -> int:
        """Listen no more, and break all connections; returns the port."""
        assert self.server is not None
        self.server.shutdown()
        self.server.server_close()
        with self.lock:
            for connection in self.connections:
                _break(connection)
        return int(self.server.server_address[1])


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server  # type: ignore[assignment]

    def setup(self) -> None:
        super().setup()
        with self.server.proxy.lock:
            self.server.proxy.connections.add(self.connection)

    def finish(self) -> None:
        with self.server.proxy.lock:
            self.server.proxy.connections.discard(self.connection)
        super().finish()

    def handle_any(self) -> None:
        """Hand on the request as it is, its signature included, and the answer, or what a fault makes of it."""
        sent = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        fault = self.server.proxy.fault(self.command, self.path)
        (fault or hand_on)(self, lambda: self.ask(sent))

    def ask(self, sent: bytes) -> Answer:
        """What the server behind says to the request."""
        behind = http.client.HTTPConnection(self.server.proxy.behind, timeout=60)
        behind.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            behind.putheader(name, value)
        behind.endheaders(sent or None)
        response = behind.getresponse()
        answer = Answer(response.status, response.getheaders(), response.read())
        behind.close()
        return answer

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

    def give(self, answer: Answer) -> None:
        self.head(answer)
        self.wfile.write(answer.body)

    def give_half(self, answer: Answer) -> None:
        self.head(answer)
        self.wfile.write(answer.body[: len(answer.body) // 2])
        self.wfile.flush()

    def head(self, answer: Answer) -> None:
        self.send_response(answer.status)
        length = str(len(answer.body))
        for name, value in answer.headers:
            if name.lower() == "content-length" and self.command == "HEAD":
                length = value
            if name.lower() not in _HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    proxy: FaultyProxy

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients hang up on it, and it on them


def hand_on(handler: Handler, ask: Callable[[], Answer]) -> None:
    """No fault."""
    handler.give(ask())


def error_status(status: int, word: str = "InternalError") -> Fault:
    """An error as S3 states it; the server behind learns nothing of the request."""
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{word}</Code><Message>x</Message></Error>'

    def fault(handler: Handler, ask: Callable[[], Answer]) -> None:
        handler.give(Answer(status, [("Content-Type", "application/xml")], body.encode()))

    return fault


def reset(handler: Handler, ask: Callable[[], Answer]) -> None:
    """Half of the answer, and a connection that breaks."""
    handler.give_half(ask())
    _break(handler.connection)
    handler.close_connection = True


def silence(handler: Handler, ask: Callable[[], Answer]) -> None:
    """Half of the answer, and then nothing, the connection open."""
    handler.give_half(ask())
    handler.server.proxy.closed.wait(60)
    handler.close_connection = True


def late(seconds: float) -> Fault:
    """The answer, late."""

    def fault(handler: Handler, ask: Callable[[], Answer]) -> None:
        answer = ask()
        handler.server.proxy.closed.wait(seconds)
        handler.give(answer)

    return fault


def away(seconds: float) -> Fault:
    """From here on nobody listens for a while."""

    def fault(handler: Handler, ask: Callable[[], Answer]) -> None:
        proxy = handler.server.proxy
        port = proxy.close()
        time.sleep(seconds)
        proxy.open(port)

    return fault


def _break(connection: socket.socket) -> None:
    """Close with a reset."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
        connection.close()


@contextmanager
def faulty_proxy(url: str) -> Iterator[FaultyProxy]:
    """Run one before the server at ``url``, on a free port of the loopback interface."""
    proxy = FaultyProxy(urlsplit(url).netloc)
    proxy.open()
    try:
        yield proxy
    finally:
        proxy.closed.set()
        proxy.close()
