"""Reading from a server that misbehaves, one fault at a time."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator

import pytest

from segclip.data_pipelines.counters import Counters
from segclip.data_pipelines.errors import StoreError
from segclip.data_pipelines.storage.config import StoreConfig
from segclip.data_pipelines.storage.store import Store, open_store
from tests.data_pipelines.faulty_server import (
    Fault,
    FaultyServer,
    faulty_server,
    instead,
    reset_after,
    short_range,
    silent,
    slow_first_byte,
    status,
    trickle,
    whole_body,
)

MIB = 1 << 20
BODY = random.Random(7).randbytes(5 * MIB // 2)
# Two and a half ranges of one MiB. Nothing is given up for being slow, as all is on a machine with other work.
SETTINGS = StoreConfig(
    range_mib=1, connections=4, stall_seconds=30, min_rate_kib=16, retries=4, retry_seconds=60
)
# But a stalled range after a second.
HASTY = {"stall_seconds": 0.6, "min_rate_kib": 1024}


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with faulty_server() as running:
        running.content["/data/x.tar"] = BODY
        yield running


def store_at(server: FaultyServer, **changes: object) -> Store:
    return open_store(f"{server.url}/data", settings=SETTINGS.model_copy(update=changes), counters=Counters())


@pytest.mark.parametrize("size", [None, len(BODY)])
def test_ranges_are_put_together_in_order(server: FaultyServer, size: int | None) -> None:
    store = store_at(server)
    # The first range comes last.
    server.faults.append(slow_first_byte(0.3))
    assert store.get("x.tar", size) == BODY
    asked = sorted(request.range or (0, 0) for request in server.requests)
    # Of known length, three ranges of at most a MiB; otherwise one of a MiB, which tells the length, and two.
    ends = [0, 873_814, 1_747_628, len(BODY)] if size else [0, MIB, 7 * MIB // 4, len(BODY)]
    assert asked == list(itertools.pairwise(ends))
    assert store.counters.take() == {"store/bytes": len(BODY)}


def test_all_connections_have_as_much_to_read(server: FaultyServer) -> None:
    assert store_at(server, connections=2).get("x.tar", len(BODY)) == BODY
    asked = sorted(request.range or (0, 0) for request in server.requests)
    quarter = len(BODY) // 4
    assert asked == [(first * quarter, (first + 1) * quarter) for first in range(4)]


def test_ranges_are_read_at_the_same_time(server: FaultyServer) -> None:
    server.always = slow_first_byte(0.4)
    begin = time.monotonic()
    assert store_at(server).get("x.tar", len(BODY)) == BODY
    assert time.monotonic() - begin < 1.0
    moments = [request.at for request in server.requests]
    assert len(moments) == 3
    assert max(moments) - min(moments) < 0.4


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (status(500), "status_500"),
        (status(503), "status_503"),
        (status(429), "status_429"),
        (reset_after(1000), "connection"),
        (short_range, "length"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_fault_is_retried_and_counted(server: FaultyServer, fault: Fault, cause: str) -> None:
    store = store_at(server)
    server.faults.append(fault)
    assert store.get("x.tar", len(BODY)) == BODY
    counted = store.counters.take()
    assert counted.pop("store/bytes") >= len(BODY)
    assert counted == {f"store/retries/{cause}": 1}


@pytest.mark.parametrize("fault", [trickle, silent, slow_first_byte(60)], ids=["trickle", "silent", "late"])
def test_what_takes_too_long_is_asked_for_again(server: FaultyServer, fault: Fault) -> None:
    store = store_at(server, **HASTY)
    server.faults.append(fault)
    begin = time.monotonic()
    assert store.get("x.tar", len(BODY)) == BODY
    assert time.monotonic() - begin < 30
    counted = store.counters.take()
    assert counted.pop("store/retries/timeout") >= 1
    assert list(counted) == ["store/bytes"]


def test_silence_is_noticed_before_the_time_of_the_range_is_over(server: FaultyServer) -> None:
    store = store_at(server, stall_seconds=0.6, min_rate_kib=1)
    server.faults.append(silent)
    begin = time.monotonic()
    assert store.get("x.tar", len(BODY)) == BODY
    assert time.monotonic() - begin < 30


def test_a_broken_range_goes_on_where_it_broke_off(server: FaultyServer) -> None:
    store = store_at(server, range_mib=4)
    server.faults.append(reset_after(2 * MIB))
    assert store.get("x.tar", len(BODY)) == BODY
    first, second = [request.range for request in server.requests]
    assert first == (0, len(BODY))
    assert second is not None
    assert second[0] >= MIB


def test_what_the_server_asks_to_wait_is_waited(server: FaultyServer) -> None:
    """The ranges meet a server that is busy for 1.5 seconds."""
    begin = time.monotonic()

    def busy(handler: object, body: bytes, wanted: tuple[int, int] | None) -> None:
        if time.monotonic() - begin < 1.5:
            status(503, Retry_After="2")(handler, body, wanted)  # type: ignore[arg-type]
        else:
            slow_first_byte(0)(handler, body, wanted)  # type: ignore[arg-type]

    server.always = busy
    store = store_at(server)
    assert store.get("x.tar", len(BODY)) == BODY
    # Ranges that were on their way, and one question how long to wait; then nothing before two seconds are over.
    moments = [request.at for request in server.requests]
    asked = [at for at in moments if at < moments[0] + 1.9]
    assert 2 <= len(asked) <= 4
    assert max(asked) - moments[0] < 0.5
    assert store.counters["store/retries/status_503"] == len(asked) - 1


def test_a_server_that_asks_for_too_long_a_wait_is_given_up_at_once(server: FaultyServer) -> None:
    server.always = status(503, Retry_After="3600")
    begin = time.monotonic()
    with pytest.raises(StoreError, match=r"x.tar cannot be reached: .*503") as caught:
        store_at(server).get("x.tar", len(BODY))
    assert caught.value.cause == "status_503"
    assert time.monotonic() - begin < 2


@pytest.mark.parametrize(
    ("fault", "cause", "retries"),
    [
        (status(500), "status_500", 2),
        (status(404), "missing", 0),
        (status(403), "denied", 0),
        (status(400), "status_400", 0),
        (reset_after(100), "connection", 2),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_lasting_fault_is_an_error_by_its_cause(
    server: FaultyServer, fault: Fault, cause: str, retries: int
) -> None:
    server.always = fault
    store = store_at(server, retries=2, range_mib=8)
    with pytest.raises(StoreError, match=r"/data/x.tar ") as caught:
        store.get("x.tar", len(BODY))
    assert caught.value.cause == cause
    assert "\n" not in str(caught.value)
    assert store.counters[f"store/retries/{cause}"] == retries
    assert len(server.requests) == 1 + retries


def test_a_server_without_ranges_is_read_whole_and_not_asked_again(server: FaultyServer) -> None:
    server.always = whole_body
    store = store_at(server)
    for _ in range(4):
        assert store.get("x.tar", len(BODY)) == BODY
    assert store.counters["store/whole_bodies"] == 4
    server.requests.clear()
    assert store.get("x.tar") == BODY
    assert [request.range for request in server.requests] == [None]


def test_one_whole_body_among_ranges_is_no_verdict(server: FaultyServer) -> None:
    store = store_at(server)
    for _ in range(4):
        server.faults.append(whole_body)
        assert store.get("x.tar", len(BODY)) == BODY
        assert store.get("x.tar", len(BODY)) == BODY
    server.requests.clear()
    assert store.get("x.tar", len(BODY)) == BODY
    assert all(request.range is not None for request in server.requests)


@pytest.mark.parametrize(
    ("content", "cause", "message"),
    [
        (b"", "empty", r"x.tar is empty: upload it again"),
        (b"\n<!DOCTYPE html><title>Log in</title>", "web_page", "is a web page and no data: check the URL"),
        (BODY[:-5], "length", r"has 2621435 bytes where 2621440 are expected"),
        (BODY + b"more", "length", r"has 2621444 bytes where 2621440 are expected"),
    ],
    ids=["empty", "page", "shorter", "longer"],
)
@pytest.mark.parametrize("ranges", [False, True])
def test_another_body_is_recognised(
    server: FaultyServer, content: bytes, cause: str, message: str, ranges: bool
) -> None:
    if ranges:
        server.content["/data/x.tar"] = content
    else:
        server.always = instead(content)
    store = store_at(server)
    with pytest.raises(StoreError, match=message) as caught:
        store.get("x.tar", len(BODY))
    assert caught.value.cause == cause
    if cause in ("empty", "web_page"):
        with pytest.raises(StoreError, match=message):
            store.get("x.tar")


def test_an_object_replaced_while_it_is_read_is_an_error(server: FaultyServer) -> None:
    def replaced(handler: object, body: bytes, wanted: tuple[int, int] | None) -> None:
        first, end = wanted or (0, len(body))
        time.sleep(0.3)
        handler.answer(  # type: ignore[attr-defined]
            206,
            body[first:end],
            {"ETag": '"2"', "Content-Range": f"bytes {first}-{min(end, len(body)) - 1}/{len(body)}"},
        )

    server.faults.append(slow_first_byte(0))
    server.always = replaced
    with pytest.raises(StoreError, match="was replaced while it was read"):
        store_at(server).get("x.tar", len(BODY))
