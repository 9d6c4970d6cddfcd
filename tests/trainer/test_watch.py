"""Beats over a real store, between watches that stand for ranks of other processes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from torch._C._distributed_c10d import TCPStore

from segclip.rendezvous import free_port
from segclip.trainer.watch import Watch, doing


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> TCPStore:
    port = free_port()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    return TCPStore("127.0.0.1", port, None, True, wait_for_workers=False)


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_ranks_that_beat_are_left_alone(store: TCPStore) -> None:
    ends: list[str] = []
    watches = [Watch(rank, 3, 1.0, end=ends.append) for rank in range(3)]
    time.sleep(2.5)
    for watch in watches:
        watch.close()
    assert ends == []
    assert threading.active_count() < 20


def test_a_rank_without_a_beat_is_named_by_all_others(store: TCPStore) -> None:
    ends: dict[int, str] = {}
    watches = [
        Watch(rank, 3, 2.0, end=lambda text, rank=rank: ends.update({rank: text})) for rank in range(3)
    ]
    doing("the reduction of gradients")
    time.sleep(1)
    watches[2].close()
    until(lambda: {0, 1} <= ends.keys())
    for watch in watches:
        watch.close()
    assert ends[0] == ends[1]
    assert ends[0].startswith("rank 2 (")
    assert (
        "its last word was that it is in: the reduction of gradients. The others wait for it in: the"
        in ends[0]
    )


def test_the_first_rank_is_missed_too(store: TCPStore) -> None:
    ends: dict[int, str] = {}
    first, second = (
        Watch(rank, 2, 2.0, end=lambda text, rank=rank: ends.update({rank: text})) for rank in (0, 1)
    )
    time.sleep(1)
    first.close()
    until(lambda: 1 in ends)
    second.close()
    assert ends[1].startswith("rank 0 (")


def test_waiting_for_data_is_said_again_twice_as_late(capfd: pytest.CaptureFixture[str]) -> None:
    watch = Watch(0, 1, 1.0, stalled=1.0)
    doing("getting the next batch")
    time.sleep(5)
    doing("backward")
    time.sleep(1)
    watch.close()
    lines = [line for line in capfd.readouterr().err.splitlines() if "for data" in line]
    assert lines[0] == "rank 0 has waited 1 s for data"
    assert 2 <= len(lines) <= 3
