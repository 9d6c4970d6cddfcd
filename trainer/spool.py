"""Records on their way to a server, in a file: what could not be sent today is sent tomorrow.

``records.jsonl`` holds one record a line, appended and never changed; ``state.json``, replaced as a whole, says up to
which byte they are sent and what the sender wants to remember. A record whose receipt could not be noted before a kill
is sent twice.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

__all__ = ["Spool"]


class Spool:
    """A queue of JSON records that outlives its process. Any thread may append; one reads.

    Attributes:
        memory: what the sender remembers, such as the identifiers that the server gave.
    """

    def __init__(self, folder: str | Path) -> None:
        """
        Args:
            folder: of the two files; made if it is not there.

        Raises:
            OSError: it cannot be written.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "records.jsonl"
        self._state = folder / "state.json"
        self._lock = threading.Lock()
        state = json.loads(self._state.read_text(encoding="utf-8")) if self._state.is_file() else {}
        self._offset: int = state.get("offset", 0)
        self.memory: dict[str, Any] = state.get("memory", {})
        if self.path.is_file() and not self._ends_whole():
            # A kill in the middle of a line: it is closed, and read as what it is.
            self._write(b"\n")

    def append(self, record: dict[str, Any]) -> None:
        """Add a record. It survives the end of this process, though not a crash of the machine.

        Raises:
            OSError: the disk is full.
        """
        self._write(json.dumps(record).encode() + b"\n")

    def next(self) -> tuple[dict[str, Any] | None, int] | None:
        """The oldest record that is not sent, and what ``sent`` has to be told; None where there is none.

        A record is None where its line is cut.
        """
        if not self.path.is_file():
            return None
        with open(self.path, "rb") as file:
            file.seek(self._offset)
            line = file.readline()
        if not line.endswith(b"\n"):
            return None
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        return record if isinstance(record, dict) else None, self._offset + len(line)

    def sent(self, offset: int) -> None:
        """Note that everything before ``offset`` is sent, and keep ``memory``."""
        self._offset = offset
        self.remember()

    def remember(self, **memory: Any) -> None:
        """Keep ``memory``, changed by what is given."""
        self.memory.update(memory)
        new = self._state.with_suffix(".new")
        new.write_text(json.dumps({"offset": self._offset, "memory": self.memory}), encoding="utf-8")
        os.replace(new, self._state)

    def waiting(self) -> int:
        """Number of records that are not sent."""
        if not self.path.is_file():
            return 0
        with open(self.path, "rb") as file:
            file.seek(self._offset)
            return sum(1 for _ in file)

    def _write(self, line: bytes) -> None:
        with self._lock, open(self.path, "ab") as file:
            file.write(line)

    def _ends_whole(self) -> bool:
        content = self.path.read_bytes()
        return not content or content.endswith(b"\n")
