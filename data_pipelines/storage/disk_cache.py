"""Shards on a local disk, kept for all workers of a node.

A shard lies under its SHA-256, so neither its age nor where it came from matters, and every read is compared
with that sum: what is damaged is fetched again. A shard that several workers want is fetched by one, the others
wait for it.

The folder holds ``shards/SHA256`` and ``partial/SHA256``. Whoever fetches a shard holds a lock (flock) on its
file in ``partial``, which is renamed to ``shards`` when it is whole. The kernel drops the locks of a killed
process; its unfinished file is taken over by the next who wants that shard, or removed when room is made. Files
in ``partial`` have their full length from the start, so the bound on the size holds at every moment. It takes a
local disk: flock is not to be relied on over a network.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from segclip.data_pipelines.counters import Counters
from segclip.data_pipelines.storage.buffers import buffer, fill
from segclip.free_space import describe_unwritten

__all__ = ["DiskCache"]

log = logging.getLogger(__name__)


class DiskCache:
    """A bounded folder of shards. Any number of processes and threads may use one folder."""

    def __init__(self, folder: str | Path, limit: int, counters: Counters) -> None:
        """
        Args:
            folder: on a local disk; made if missing.
            limit: largest size of all shards in it, in bytes.
            counters: hits, misses and what else happened is added there.

        Raises:
            ValueError: the folder cannot be made or written.
        """
        self._folder, self._limit, self._counters = Path(folder).expanduser(), limit, counters
        self._shards, self._partial = self._folder / "shards", self._folder / "partial"
        self._warned = False
        try:
            for each in (self._shards, self._partial):
                each.mkdir(parents=True, exist_ok=True)
            (self._folder / "lock").touch()
        except OSError as error:
            raise ValueError(
                f"the cache folder {self._folder} cannot be written ({error.strerror}): "
                "set data.store.cache_dir to a folder on a local disk, or to null"
            ) from error

    def get(self, sha256: str, size: int, fetch: Callable[[], memoryview]) -> memoryview:
        """The content with a sum, from the disk, or else fetched and kept.

        Args:
            sha256: of the content, as hexadecimal digits.
            size: its length in bytes.
            fetch: gets the content where it is not on the disk, and has verified it; its errors, which are no
                ``OSError``, are passed on.
        """
        fetched: list[memoryview] = []

        def once() -> memoryview:
            fetched.append(fetch())
            return fetched[0]

        try:
            return self._get(sha256, size, once)
        except OSError as error:
            self._counters.add("cache/unusable")
            self._trouble("cannot be used", error)
            return fetched[0] if fetched else fetch()

    def _get(self, sha256: str, size: int, fetch: Callable[[], memoryview]) -> memoryview:
        while True:
            content = self._read(sha256, size)
            if content is not None:
                self._counters.add("cache/hits")
                return content
            with self._claim(sha256) as descriptor:
                if descriptor is None or (self._shards / sha256).exists():
                    continue  # another has been faster, or has given up: look again
                self._counters.add("cache/misses")
                content = fetch()
                self._keep(sha256, content, descriptor)
                return content

    def _read(self, sha256: str, size: int) -> memoryview | None:
        """A kept shard, if it is there and right; one that is not is removed."""
        path = self._shards / sha256
        content = buffer(size)
        try:
            with path.open("rb", buffering=0) as file:
                stated = os.fstat(file.fileno()).st_size
                whole = stated == size and fill(file.fileno(), content) == size
        except FileNotFoundError:
            return None
        except OSError as error:
            self._trouble("cannot be read", error)
            whole = False
        if whole and hashlib.sha256(content).hexdigest() == sha256:
            # Removed to make room, which takes nothing from what was read; or another user's, who alone may date it.
            with suppress(FileNotFoundError, PermissionError):
                os.utime(path)
            return content
        self._counters.add("cache/corrupt")
        path.unlink(missing_ok=True)
        return None

    @contextmanager
    def _claim(self, sha256: str) -> Iterator[int | None]:
        """Wait for the right to fetch a shard: a descriptor of its partial file, or None to look again."""
        path = self._partial / sha256
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            mine = _is_same(descriptor, path)
            try:
                yield descriptor if mine else None
            finally:
                # Not renamed: it was not kept.
                if mine and _is_same(descriptor, path):
                    path.unlink()
        finally:
            _release(descriptor)

    def _keep(self, sha256: str, content: memoryview, descriptor: int) -> None:
        """Write a fetched shard if there is room. A full or broken disk costs the cache, never the run."""
        try:
            if not self._reserve(sha256, len(content), descriptor):
                self._counters.add("cache/no_room")
                return
            at = 0
            while at < len(content):
                at += os.pwrite(descriptor, content[at:], at)
            os.rename(self._partial / sha256, self._shards / sha256)
        except OSError as error:
            self._counters.add("cache/unwritten")
            if not self._warned:
                self._warned = True
                what = describe_unwritten(error, self._partial / sha256, len(content))
                log.warning(
                    "%s; the run goes on, and shards that the cache does not hold are fetched again", what
                )

    def _reserve(self, sha256: str, size: int, descriptor: int) -> bool:
        """Make room for a shard and give its partial file its length; False if there is none to be had."""
        with self._lock():
            used = 0
            for path in self._partial.iterdir():
                if path.name != sha256:
                    used += self._size_of_live(path)
            kept = sorted(_stats(self._shards), key=lambda each: each[1])
            used += sum(length for _, _, length in kept)
            for path, _, length in kept:
                if used + size <= self._limit:
                    break
                path.unlink(missing_ok=True)
                used -= length
                self._counters.add("cache/evicted")
            if used + size > self._limit:
                return False
            os.ftruncate(descriptor, size)
            return True

    def _size_of_live(self, path: Path) -> int:
        """Size of a partial file that someone is writing; one that nobody holds is removed."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return 0
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return os.fstat(descriptor).st_size
        else:
            if _is_same(descriptor, path):
                path.unlink()
            return 0
        finally:
            os.close(descriptor)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Of the whole folder, held while room is made."""
        descriptor = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            _release(descriptor)

    def _trouble(self, what: str, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            log.warning("the cache folder %s %s, shards are fetched again: %s", self._folder, what, error)


def _release(descriptor: int) -> None:
    """Drop a lock and close its file. Closing alone would leave it to a child that was forked meanwhile."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def _is_same(descriptor: int, path: Path) -> bool:
    """Whether a path still names the file that was opened under it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _stats(folder: Path) -> Iterator[tuple[Path, int, int]]:
    """Path, time of last use and size of each file in a folder."""
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                stat = entry.stat()
                yield Path(entry.path), stat.st_mtime_ns, stat.st_size
