from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from segclip.data_pipelines.counters import Counters
from segclip.data_pipelines.storage.disk_cache import DiskCache

SIZE = 1000
BODIES = [random.Random(n).randbytes(SIZE) for n in range(8)]


def sum_of(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


class Source:
    """Counts what is fetched."""

    def __init__(self) -> None:
        self.fetched: list[int] = []

    def get(self, cache: DiskCache, number: int) -> bytes:
        def fetch() -> bytearray:
            self.fetched.append(number)
            return bytearray(BODIES[number])

        return bytes(cache.get(sum_of(BODIES[number]), SIZE, fetch))


def held(folder: Path) -> set[str]:
    return {path.name for path in (folder / "shards").iterdir()}


def test_what_was_fetched_once_comes_from_the_disk(tmp_path: Path) -> None:
    counters, source = Counters(), Source()
    for _ in range(2):  # another process would see the same
        cache = DiskCache(tmp_path / "cache", 10 * SIZE, counters)
        assert [source.get(cache, n) for n in (0, 1, 0)] == [BODIES[0], BODIES[1], BODIES[0]]
    assert source.fetched == [0, 1]
    assert counters.take() == {"cache/misses": 2, "cache/hits": 4}
    assert not list((tmp_path / "cache" / "partial").iterdir())


def test_the_size_is_bounded_and_the_oldest_go_first(tmp_path: Path) -> None:
    counters, source = Counters(), Source()
    cache = DiskCache(tmp_path, 3 * SIZE + 1, counters)
    for number in (0, 1, 2, 0, 3, 0, 4):
        source.get(cache, number)
        assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) <= 3 * SIZE + 1
        time.sleep(0.01)  # times of files have a resolution
    assert held(tmp_path) == {sum_of(BODIES[n]) for n in (0, 3, 4)}
    assert source.fetched == [0, 1, 2, 3, 4]
    assert counters["cache/evicted"] == 2


def test_what_does_not_fit_at_all_is_given_but_not_kept(tmp_path: Path) -> None:
    counters, source = Counters(), Source()
    cache = DiskCache(tmp_path, SIZE - 1, counters)
    assert source.get(cache, 0) == BODIES[0]
    assert held(tmp_path) == set()
    assert counters["cache/no_room"] == 1
    assert not list((tmp_path / "partial").iterdir())


@pytest.mark.parametrize("damage", ["flipped", "cut", "longer", "empty"])
def test_a_damaged_file_is_fetched_again(tmp_path: Path, damage: str) -> None:
    counters, source = Counters(), Source()
    cache = DiskCache(tmp_path, 10 * SIZE, counters)
    source.get(cache, 0)
    path = tmp_path / "shards" / sum_of(BODIES[0])
    changed = bytearray(BODIES[0])
    changed[500] ^= 1
    path.write_bytes(
        {"flipped": bytes(changed), "cut": BODIES[0][:-1], "longer": BODIES[0] + b"x", "empty": b""}[damage]
    )
    assert source.get(cache, 0) == BODIES[0]
    assert path.read_bytes() == BODIES[0]
    assert source.fetched == [0, 0]
    assert counters["cache/corrupt"] == 1


def test_many_at_once_fetch_once(tmp_path: Path) -> None:
    counters = Counters()
    caches = [DiskCache(tmp_path, 10 * SIZE, counters) for _ in range(8)]
    fetched: list[int] = []
    all_here = threading.Barrier(8)

    def fetch() -> bytearray:
        fetched.append(1)
        time.sleep(0.2)
        return bytearray(BODIES[0])

    def get(cache: DiskCache) -> bytes:
        all_here.wait(10)
        return bytes(cache.get(sum_of(BODIES[0]), SIZE, fetch))

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(get, caches)) == [BODIES[0]] * 8
    assert fetched == [1]
    assert counters.take() == {"cache/misses": 1, "cache/hits": 7}


def test_an_error_of_fetching_is_passed_on_and_leaves_nothing(tmp_path: Path) -> None:
    source = Source()
    cache = DiskCache(tmp_path, 10 * SIZE, Counters())

    def fail() -> bytearray:
        raise ValueError("out of reach")

    with pytest.raises(ValueError, match="out of reach"):
        cache.get(sum_of(BODIES[0]), SIZE, fail)
    assert not list((tmp_path / "partial").iterdir())
    assert source.get(cache, 0) == BODIES[0]


HANG = """
import sys, time, os
from segclip.data_pipelines.counters import Counters
from segclip.data_pipelines.storage import disk_cache
folder, name, size, where = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
def hang(*_):
    print("here", flush=True)
    time.sleep(60)
def half(descriptor, content, at):
    os.write(descriptor, content[: size // 2])
    hang()
if where == "writing":
    disk_cache.os.pwrite = half
elif where == "renaming":
    disk_cache.os.rename = hang
cache = disk_cache.DiskCache(folder, 10 * size, Counters())
cache.get(name, size, hang if where == "fetching" else lambda: bytearray(size))
"""


@pytest.mark.parametrize("where", ["fetching", "writing", "renaming"])
def test_a_kill_at_any_moment_leaves_a_cache_that_works(tmp_path: Path, where: str) -> None:
    name = sum_of(BODIES[0])
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", HANG, str(tmp_path), name, str(SIZE), where],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"here\n"
        counters, source = Counters(), Source()
        cache = DiskCache(tmp_path, 5 * SIZE // 2, counters)
        # Another shard is not held up, and what is being written counts in full.
        assert source.get(cache, 1) == BODIES[1]
        assert source.get(cache, 2) == BODIES[2]
        assert len(held(tmp_path)) == (2 if where == "fetching" else 1)
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(source.get, cache, 0)
            time.sleep(0.2)
            assert not waiting.done()  # the one that is fetching may yet finish
            os.kill(process.pid, signal.SIGKILL)
            assert waiting.result(10) == BODIES[0]
    process.wait(10)
    assert name in held(tmp_path)
    assert not list((tmp_path / "partial").iterdir())
    for path in (tmp_path / "shards").iterdir():
        assert sum_of(path.read_bytes()) == path.name


def test_what_a_kill_left_behind_is_removed_when_room_is_made(tmp_path: Path) -> None:
    source = Source()
    cache = DiskCache(tmp_path, 2 * SIZE, Counters())
    (tmp_path / "partial" / sum_of(b"never asked for again")).write_bytes(bytes(SIZE))
    source.get(cache, 0)
    source.get(cache, 1)
    assert not list((tmp_path / "partial").iterdir())
    assert len(held(tmp_path)) == 2


def test_a_disk_that_fails_costs_the_cache_and_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counters, source = Counters(), Source()
    cache = DiskCache(tmp_path, 10 * SIZE, counters)
    (tmp_path / "shards").rmdir()
    (tmp_path / "shards").symlink_to("/proc/self/fd")  # exists, takes no files
    assert source.get(cache, 0) == BODIES[0]
    assert counters["cache/unwritten"] == 1
    assert (
        "cannot be written: Not a directory" in caplog.text
        or "the run goes on, and shards that the cache" in caplog.text
    )


@pytest.mark.parametrize("damage", ["gone", "partial gone", "no file", "a folder in place of the shard"])
def test_a_folder_that_is_taken_away_costs_the_cache_and_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    """A cleaner of temporary files, a disk that fell back to read-only, another user's files."""
    counters, source = Counters(), Source()
    cache = DiskCache(tmp_path / "cache", 10 * SIZE, counters)
    if damage == "gone":
        shutil.rmtree(tmp_path / "cache")
    elif damage == "a folder in place of the shard":
        (tmp_path / "cache" / "shards" / sum_of(BODIES[0])).mkdir()
    else:
        (tmp_path / "cache" / "partial").rmdir()
        if damage == "no file":
            (tmp_path / "cache" / "partial").write_text("")
    assert [source.get(cache, n) for n in (0, 1, 0)] == [BODIES[0], BODIES[1], BODIES[0]]
    assert counters["cache/unusable"] >= 2
    assert caplog.text.count("shards are fetched again") == 1
    assert source.fetched.count(0) == 2


def test_a_disk_that_fails_after_fetching_does_not_fetch_twice(tmp_path: Path) -> None:
    source = Source()
    cache = DiskCache(tmp_path / "cache", 10 * SIZE, Counters())

    def fetch() -> bytearray:
        shutil.rmtree(tmp_path / "cache")
        (tmp_path / "cache").write_text("")  # so that not even the unfinished file can be looked for
        source.fetched.append(0)
        return bytearray(BODIES[0])

    assert cache.get(sum_of(BODIES[0]), SIZE, fetch) == BODIES[0]
    assert source.fetched == [0]


def test_a_child_that_was_forked_meanwhile_holds_nobody_up(tmp_path: Path) -> None:
    """A forked child inherits open files, and with them their locks."""
    source = Source()
    cache, other = (DiskCache(tmp_path, 10 * SIZE, Counters()) for _ in range(2))
    children: list[int] = []
    waiting: list[Future[bytes]] = []

    with ThreadPoolExecutor(1) as threads:

        def fetch() -> bytearray:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads
                child = os.fork()
            if child == 0:
                time.sleep(60)
                os._exit(0)
            children.append(child)
            waiting.append(threads.submit(source.get, other, 0))
            time.sleep(0.3)
            raise ValueError("out of reach")

        try:
            with pytest.raises(ValueError, match="out of reach"):
                cache.get(sum_of(BODIES[0]), SIZE, fetch)
            assert waiting[0].result(10) == BODIES[0]
        finally:
            for child in children:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"the cache folder .*/file/cache cannot be written .*cache_dir"):
        DiskCache(tmp_path / "file" / "cache", SIZE, Counters())
