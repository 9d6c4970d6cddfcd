from __future__ import annotations

import socket
import threading
import time

import pytest

from segclip.data_pipelines.counters import Counters
from segclip.data_pipelines.errors import StoreError
from segclip.data_pipelines.storage.retry import Attempts, RetryPolicy, Throttle, parse_retry_after


def test_delays_double_up_to_a_limit_and_differ() -> None:
    policy = RetryPolicy(10, 60.0, first_delay=1.0, longest_delay=10.0)
    assert [policy.delay(n, 0.0) for n in (1, 2, 3, 4, 5, 50)] == [1, 2, 4, 8, 10, 10]
    assert policy.delay(3, 0.999) == pytest.approx(2, rel=1e-2)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 0.0),
        ("7", 7.0),
        (" 0 ", 0.0),
        ("Thu, 01 Jan 1970 00:16:45 GMT", 5.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("soon", 0.0),
        ("\xb2", 0.0),
        ("", 0.0),
        ("-3", 0.0),
    ],
)
def test_retry_after_is_seconds_or_a_date(header: str | None, seconds: float) -> None:
    assert parse_retry_after(header, now=1000.0) == seconds


def test_an_answer_that_is_no_http_asks_for_no_pause() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"what?\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        throttle = Throttle(lambda path: f"http://127.0.0.1:{server.getsockname()[1]}/{path}", 5.0)
        assert throttle.pause("x.tar") == 0.0
        thread.join(5)


def attempts(retries: int, seconds: float = 10.0) -> tuple[Attempts, Counters]:
    counters = Counters()
    policy = RetryPolicy(retries, seconds, first_delay=0.01)
    return Attempts(policy, counters, threading.Event()), counters


def test_progress_starts_the_count_anew() -> None:
    trying, counters = attempts(2)
    for _ in range(3):
        trying.failed(OSError("a"), "connection")
        trying.failed(OSError("b"), "timeout")
        trying.progress()
    assert counters.take() == {"store/retries/connection": 3, "store/retries/timeout": 3}
    trying.failed(OSError("c"), "connection")
    trying.failed(OSError("d"), "connection")
    with pytest.raises(OSError, match="e"):
        trying.failed(OSError("e"), "connection")


def test_time_and_cause_set_limits_too() -> None:
    trying, _ = attempts(100, seconds=0.05)
    with pytest.raises(OSError, match="x"):
        trying.failed(OSError("x"), "status_503", pause=1.0)
    trying, counters = attempts(100)
    trying.failed(StoreError("length", "1"), "length")
    trying.failed(StoreError("length", "2"), "length")
    with pytest.raises(StoreError, match="3"):
        trying.failed(StoreError("length", "3"), "length")
    assert counters["store/retries/length"] == 2
    for cause in ("missing", "denied", "status_400", "status_412"):
        with pytest.raises(StoreError):
            attempts(100)[0].failed(StoreError(cause, cause), cause)


def test_a_stop_ends_the_waiting() -> None:
    stop = threading.Event()
    trying = Attempts(RetryPolicy(5, 60.0, first_delay=30.0), Counters(), stop)
    threading.Timer(0.1, stop.set).start()
    begin = time.monotonic()
    with pytest.raises(OSError, match="x"):
        trying.failed(OSError("x"), "connection")
    assert time.monotonic() - begin < 5
