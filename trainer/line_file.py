"""A file that lines are appended to, and that a full disk does not stop."""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from contextlib import suppress
from pathlib import Path

from segclip.free_space import describe_unwritten

__all__ = ["LineFile"]

log = logging.getLogger(__name__)
# What the disk does not take is kept in memory up to this size: some ten thousand reports of metrics.
MOST_HELD = 16 << 20


class LineFile:
    """Lines, on the disk as far as it takes them, the rest held in memory until it does. Any thread may use it.

    A line survives the end of this process once it is on the disk, though not a crash of the machine. What is still
    held when the process ends is lost.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._held: deque[bytes] = deque()
        self._held_bytes = 0
        self._lost = 0
        if self._size():
            with suppress(OSError):
                self._write_held()  # which closes a line that a kill has cut

    @property
    def held(self) -> int:
        """Lines that are not on the disk."""
        return len(self._held)

    def append(self, line: bytes) -> None:
        """Add a line, given with its end. Never fails: trouble with the disk is said once, in the log."""
        with self._lock:
            was_held = bool(self._held)
            self._held.append(line)
            try:
                self._write_held()
            except OSError as error:
                self._hold(line, error)
                return
            if was_held:
                log.warning(
                    "%s is written again, %s",
                    self.path,
                    f"{self._lost} lines are lost" if self._lost else "nothing is lost",
                )
                self._lost = 0

    def first(self, offset: int) -> bytes | None:
        """The line that begins at byte ``offset`` of the file, or, at its end, the first one held; None where there is
        none, or none that is whole."""
        with self._lock:
            if self._size() <= offset:
                return self._held[0] if self._held else None
            with open(self.path, "rb") as file:
                file.seek(offset)
                line = file.readline()
            return line if line.endswith(b"\n") else None

    def skip(self, offset: int, line: bytes) -> int:
        """Go past the line that ``first`` gave for an offset: returns that of the next.

        One that was held then may have been written since; one that was not is held no more.
        """
        with self._lock:
            if self._size() > offset:
                return offset + len(line)
            self._held.popleft()
            self._held_bytes -= len(line)
            return offset

    def after(self, offset: int) -> int:
        """Number of lines that begin at byte ``offset`` or later, with those held."""
        with self._lock:
            if self._size() <= offset:
                return len(self._held)
            with open(self.path, "rb") as file:
                file.seek(offset)
                return sum(1 for _ in file) + len(self._held)

    def _size(self) -> int:
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def _write_held(self) -> None:
        """Write all that is held, or nothing of it."""
        with open(self.path, "a+b", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            # A kill in the middle of a line: it is closed, and read as what it is.
            closing = b"\n" if size and os.pread(file.fileno(), 1, size - 1) != b"\n" else b""
            content = memoryview(closing + b"".join(self._held))
            try:
                while content:
                    content = content[file.write(content) or 0 :]
            except OSError:
                file.truncate(size)
                raise
        self._held.clear()
        self._held_bytes = 0

    def _hold(self, line: bytes, error: OSError) -> None:
        """Keep the last line in memory, if there is room in it."""
        if self._held_bytes + len(line) > MOST_HELD:
            self._held.pop()
            self._lost += 1
            if self._lost == 1:
                log.warning(
                    "%s: as much as may wait for room on the disk does, further lines are lost", self.path
                )
            return
        self._held_bytes += len(line)
        if len(self._held) == 1:
            log.warning(
                "%s; the run goes on, and up to %d MiB wait in memory until there is room",
                describe_unwritten(error, self.path, len(line)),
                MOST_HELD >> 20,
            )
