"""What a forked rank does: in a file of its own, as a rank must not import ``tests.ranks``, which starts a server."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["run_rank"]


def run_rank(script: str, arguments: Sequence[str], environment: Mapping[str, str], output: str) -> None:
    """Run a script as ``__main__``, with its output in a file."""
    os.setsid()  # descendants are known by their session
    descriptor = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    # Those of a forked process go nowhere.
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False, encoding="utf-8")
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False, encoding="utf-8", errors="backslashreplace")
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).parent)
    runpy.run_path(script, run_name="__main__")
