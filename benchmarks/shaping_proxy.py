"""A TCP proxy that makes the loopback look like a distant object store: so many MB/s a connection, first byte late.

Runs in a process of its own. Bodies pass through a kernel pipe (``splice``) without being copied into Python, so that
what it can carry unshaped (the benchmark measures it) is far above what it is asked to let through.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection

__all__ = ["shaping_proxy"]

HOST = "127.0.0.1"
PIECE = 256 << 10
PIPE_BYTES = 1 << 20
# Time lost by a late wake-up may be made up for so long, or no rate below the asked one would ever be reached.
CATCH_UP = 0.02


@contextmanager
def shaping_proxy(port: int, *, rate: float | None, first_byte: float) -> Iterator[str]:
    """Stand before a server on the loopback while the context is open; gives the URL to use in its place.

    Args:
        port: of the server.
        rate: bytes a second that each connection lets through from the server; None shapes nothing.
        first_byte: seconds by which each answer begins late.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(port, rate, first_byte, sender), daemon=True)
    process.start()
    sender.close()
    try:
        yield f"http://{HOST}:{receiver.recv()}"
    finally:
        receiver.close()
        process.terminate()
        process.join()


def _serve(port: int, rate: float | None, first_byte: float, sender: Connection) -> None:
    with socket.create_server((HOST, 0), backlog=128) as listener:
        sender.send(listener.getsockname()[1])
        while True:
            client, _ = listener.accept()
            threading.Thread(target=_connect, args=(client, port, rate, first_byte), daemon=True).start()


def _connect(client: socket.socket, port: int, rate: float | None, first_byte: float) -> None:
    with client, socket.create_connection((HOST, port)) as server:
        for each in (client, server):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        asked = threading.Event()
        back = threading.Thread(target=_answers, args=(server, client, rate, first_byte, asked), daemon=True)
        back.start()
        with suppress(OSError):
            while request := client.recv(1 << 16):
                asked.set()
                server.sendall(request)
            server.shutdown(socket.SHUT_WR)
        back.join()


def _answers(
    server: socket.socket,
    client: socket.socket,
    rate: float | None,
    first_byte: float,
    asked: threading.Event,
) -> None:
    """Pass on what the server says, in its own time."""
    out, into = os.pipe()
    try:
        fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        due = 0.0
        while count := os.splice(server.fileno(), into, PIECE):
            if asked.is_set():
                asked.clear()
                time.sleep(first_byte)
            if rate is not None:
                now = time.monotonic()
                due = max(due, now - CATCH_UP)
                if due > now:
                    time.sleep(due - now)
                due += count / rate
            while count:
                count -= os.splice(out, client.fileno(), count)
    except OSError:
        pass  # one of the two has gone
    finally:
        os.close(out)
        os.close(into)
        # The other direction waits for this client.
        for each in (client, server):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
