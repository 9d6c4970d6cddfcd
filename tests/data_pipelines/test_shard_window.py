from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from segclip.data_pipelines.shard import Shard, open_shard
from segclip.data_pipelines.shard_window import ShardWindow
from segclip.data_pipelines.shard_writer import pack


class Source:
    """Shards of 100 bytes each, as far as the window is told."""

    def __init__(self) -> None:
        self.fetched: list[int] = []
        self.held_up = threading.Event()
        self.held_up.set()

    def fetch(self, number: int) -> Shard:
        self.fetched.append(number)
        self.held_up.wait(10)
        content, _ = pack([(f"{number}", {"txt": b"t"})])
        return open_shard(f"{number}.tar", bytearray(content))


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def window(source: Source) -> Iterator[ShardWindow]:
    made = ShardWindow(source.fetch, [100] * 20, 450)
    yield made
    source.held_up.set()
    made.close()


def test_what_comes_next_is_fetched_while_memory_allows(source: Source, window: ShardWindow) -> None:
    window.need(0, {1, 2}, {3, 4, 5})
    assert window.held == {1, 2, 3, 4}
    assert window.get(0, 2).name == "2.tar"
    window.need(0, {3}, {4, 5})  # 1 and 2 are let go, so there is room for 5
    assert window.held == {3, 4, 5}
    assert [window.get(0, number).name for number in (3, 4, 5)] == ["3.tar", "4.tar", "5.tar"]
    assert sorted(source.fetched) == [1, 2, 3, 4, 5]


def test_what_lanes_stand_in_is_fetched_whatever_it_takes(
    window: ShardWindow, caplog: pytest.LogCaptureFixture
) -> None:
    window.need(0, {1, 2, 3}, {10})
    assert window.held == {1, 2, 3, 10}
    window.need(1, {4, 5, 6}, {11})
    assert window.held == {1, 2, 3, 4, 5, 6, 10}  # 10 was on its way already
    assert "above data.store.prefetch_mib" in caplog.text
    window.need(0, {10}, {12})
    assert window.held == {10, 4, 5, 6}


def test_a_shard_of_two_lanes_stays_until_both_have_left(source: Source, window: ShardWindow) -> None:
    window.need(0, {1}, set())
    window.need(1, {1}, set())
    window.need(0, {2}, set())
    assert window.get(1, 1).name == "1.tar"
    window.need(1, {2}, set())
    assert window.held == {2}
    assert window.get(0, 9).name == "9.tar"  # one outside what was stated, until the lane moves on
    assert window.held == {2, 9}
    window.need(0, {2}, set())
    assert window.held == {2}
    assert source.fetched.count(1) == 1


def test_an_error_of_fetching_arrives_where_the_shard_is_wanted() -> None:
    def fail(number: int) -> Shard:
        raise ValueError(f"no shard {number}")

    window = ShardWindow(fail, [1] * 3, 10)
    window.need(0, {0}, {1})
    with pytest.raises(ValueError, match="no shard 0"):
        window.get(0, 0)
    window.close()
