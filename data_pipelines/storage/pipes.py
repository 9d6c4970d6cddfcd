"""Reading objects from the output of a command: ``pipe:COMMAND``, as webdataset has it.

A command of the shell is whatever its author wants it to be, so this takes ``data.allow_pipe: true``.
"""

from __future__ import annotations

import shlex
import subprocess

from segclip.data_pipelines.counters import Counters
from segclip.data_pipelines.errors import StoreError
from segclip.data_pipelines.storage.buffers import buffer

__all__ = ["PipeReader", "check_pipe"]

PREFIX = "pipe:"


def check_pipe(url: str, allowed: bool) -> str:
    """A ``pipe:`` URL that may be run.

    Raises:
        ValueError: pipes are not allowed, or the command does not say where the path of an object goes.
    """
    if not allowed:
        raise ValueError(
            f"pipe: URLs run shell commands and are refused: {url!r}; if you trust it, set data.allow_pipe=true"
        )
    if "{}" not in url:
        raise ValueError(f"{url!r} has no {{}} where the path of an object goes: such as pipe:cat /data/{{}}")
    return url


class PipeReader:
    """Objects as a command prints them."""

    def __init__(self, url: str, counters: Counters) -> None:
        self._url, self._counters = url, counters

    def read(self, path: str, size: int | None = None) -> memoryview:
        """What the command prints for an object; its path is quoted for the shell.

        Raises:
            StoreError: the command fails, or prints another length than ``size``.
        """
        command = self._url.removeprefix(PREFIX).replace("{}", shlex.quote(path))
        done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, check=False)
        if done.returncode != 0:
            said = " ".join(done.stderr.decode("utf-8", "replace").split())[:200]
            raise StoreError("pipe", f"{command!r} failed with exit code {done.returncode}: {said}")
        self._counters.add("store/bytes", len(done.stdout))
        if size is not None and len(done.stdout) != size:
            raise StoreError(
                "length", f"{command!r} printed {len(done.stdout)} bytes where {size} are expected"
            )
        content = buffer(len(done.stdout))
        content[:] = done.stdout
        return content
