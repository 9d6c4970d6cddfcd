"""Which software made a result."""

from __future__ import annotations

import functools
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["versions"]

_PACKAGES = ("segclip", "torch", "numpy", "pillow")


def versions() -> dict[str, str]:
    """Version of Python and of the packages that take part, and ``commit`` of the checkout this code runs from, with
    ``+`` behind it if files were changed since.
    """
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a checkout that is not installed
            continue
    commit = _commit()
    return found if commit is None else {**found, "commit": commit}


@functools.cache
def _commit() -> str | None:
    folder = str(Path(__file__).resolve().parent)
    answers = []
    for question in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no", "--", "..")):
        try:
            done = subprocess.run(
                ["git", "-C", folder, *question], capture_output=True, text=True, check=False, timeout=30
            )
        except (OSError, subprocess.TimeoutExpired):  # no git here, or a file system that does not answer
            return None
        if done.returncode:
            return None
        answers.append(done.stdout.strip())
    return answers[0] + ("+" if answers[1] else "")
