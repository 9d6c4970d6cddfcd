"""Records on their way to a server, in a file: what could not be sent today is sent tomorrow.

``records.jsonl`` holds one record a line, appended and never changed; ``state.json``, replaced as a whole, says up to
which byte they are sent and what the sender wants to remember. A record whose receipt could not be noted before a kill
is sent twice. What a full disk does not take is kept in memory (see ``line_file``), and sent all the same.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from segclip.free_space import describe_unwritten
from segclip.trainer.line_file import LineFile

__all__ = ["Spool"]

log = logging.getLogger(__name__)


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
        self._lines = LineFile(folder / "records.jsonl")
        self._state = folder / "state.json"
        state = json.loads(self._state.read_text(encoding="utf-8")) if self._state.is_file() else {}
        self._offset: int = state.get("offset", 0)
        self._unwritten = False
        self.memory: dict[str, Any] = state.get("memory", {})

    @property
    def path(self) -> Path:
        """Where the records lie."""
        return self._lines.path

    @property
    def held(self) -> int:
        """Records that are in memory alone, because the disk takes nothing."""
        return self._lines.held

    def append(self, record: dict[str, Any]) -> None:
        """Add a record. Once the disk has taken it, it survives the end of this process."""
        self._lines.append(json.dumps(record).encode() + b"\n")

    def next(self) -> tuple[dict[str, Any] | None, bytes] | None:
        """The oldest record that is not sent, and what ``sent`` has to be told; None where there is none.

        A record is None where its line is cut.
        """
        line = self._lines.first(self._offset)
        if line is None:
            return None
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        return record if isinstance(record, dict) else None, line

    def sent(self, line: bytes) -> None:
        """Note that the record of a line that ``next`` gave is sent, and keep ``memory``."""
        self._offset = self._lines.skip(self._offset, line)
        self.remember()

    def remember(self, **memory: Any) -> None:
        """Keep ``memory``, changed by what is given."""
        self.memory.update(memory)
        new = self._state.with_suffix(".new")
        text = json.dumps({"offset": self._offset, "memory": self.memory})
        try:
            new.write_text(text, encoding="utf-8")
            os.replace(new, self._state)
        except OSError as error:
            # Known in memory: only a process after this one would send again what was sent since.
            if not self._unwritten:
                log.warning("%s; the run goes on", describe_unwritten(error, self._state, len(text)))
            self._unwritten = True
        else:
            self._unwritten = False

    def waiting(self) -> int:
        """Number of records that are not sent."""
        return self._lines.after(self._offset)
