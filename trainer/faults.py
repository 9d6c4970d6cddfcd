"""Places where the fault suite (``tests/faults``) makes a run fail; without its environment variable they do nothing.

``SEGCLIP_FAULTS`` holds a JSON list of faults such as ``{"where": "checkpoint.rename", "rank": 0, "step": 4, "what":
"kill"}``. Each fires once: it is noted in the file ``SEGCLIP_FAULTS_FIRED`` before it happens, and what is noted there
does not fire again, in this process or in one that is started after it.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from pathlib import Path

__all__ = ["FAULTS", "FIRED", "fail_at"]

FAULTS, FIRED = "SEGCLIP_FAULTS", "SEGCLIP_FAULTS_FIRED"


def fail_at(where: str, step: int, rank: int | None = None, path: Path | None = None) -> None:
    """Fail here if the fault suite wants it.

    Args:
        where: name of the place.
        step: steps made, or the step that is being made.
        rank: this process among all; None takes it from the environment.
        path: the file that has just been written, for the fault ``"tear"``: half of it, then a kill.

    Raises:
        OSError: the fault ``"disk full"``.
    """
    if FAULTS not in os.environ:
        return
    rank = int(os.environ.get("RANK", "0")) if rank is None else rank
    for fault in json.loads(os.environ[FAULTS]):
        if (fault["where"], fault["rank"], fault["step"]) == (where, rank, step) and _note(fault):
            _happen(fault, path)


def _note(fault: dict[str, object]) -> bool:
    """Write down that a fault fires; False if that stands there."""
    line = json.dumps(fault, sort_keys=True) + "\n"
    with open(os.environ[FIRED], "a+", encoding="utf-8") as file:
        file.seek(0)
        if line in file.readlines():
            return False
        file.write(line)
    return True


def _happen(fault: dict[str, object], path: Path | None) -> None:
    what = str(fault["what"])
    if what == "tear":
        assert path is not None
        os.truncate(path, path.stat().st_size // 2)
    if what in ("kill", "tear"):
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif what in ("SIGTERM", "SIGUSR1"):
        os.kill(os.getpid(), signal.Signals[what])
    elif what == "disk full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    elif what.startswith("sleep "):
        time.sleep(float(what.removeprefix("sleep ")))
    else:
        raise ValueError(f"unknown fault {what!r}")
