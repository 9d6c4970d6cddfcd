"""A case of a benchmark in a process of its own, and the memory that such a process takes."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.report import ROOT

__all__ = ["peak_resident_mib", "resident_mib_from_here", "run_alone"]


def run_alone(script: str, *words: object, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Start ``python -m benchmarks.SCRIPT WORDS`` and read the last line that it prints, in JSON.

    Args:
        script: name of the module.
        words: of its command line.
        environment: variables beside those of this process.

    Raises:
        subprocess.CalledProcessError: it failed, and has said why.
    """
    command = [sys.executable, "-m", f"benchmarks.{script}", *map(str, words)]
    variables = {**os.environ, **(environment or {})}
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, env=variables)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def peak_resident_mib() -> float:
    """Largest resident memory of this process so far.

    Not ``getrusage``: its figure survives exec, so that a process would inherit the peak of whoever started it.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 2**10


def resident_mib_from_here() -> float:
    """Resident memory now, from which the peak is counted anew: what loading took before is not counted."""
    with contextlib.suppress(OSError):  # some containers forbid it; then the peak counts that, too
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return peak_resident_mib()
