"""Which code this is."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

__all__ = ["git_commit"]


@functools.cache
def git_commit() -> str | None:
    """Commit of the checkout that this code runs from, with ``+`` behind it if files were changed since.

    None outside a checkout, and where there is no git.
    """
    folder = str(Path(__file__).resolve().parent)
    answers = []
    for question in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no", "--", ":/")):
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
