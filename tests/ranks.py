"""Ranks of a run for tests: forked from a process that holds torch and DeepSpeed already, and by no launcher.

To start Python, torch and DeepSpeed takes each rank, and the launcher twice more, some seconds of a core; a forked rank
begins at once. And a launcher ends the other ranks when one has failed: without one they have to end by themselves.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from segclip.rendezvous import free_port
from tests.rank_process import run_rank

__all__ = ["Group", "complete", "start"]

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.preloaded"])
# A process has one such server for all that it starts. Begun now, before a test of something else begins one that holds
# less: ranks from that would each import all of it.
if multiprocessing.parent_process() is None:
    forkserver.ensure_running()


@dataclass
class Group:
    """Processes of one run."""

    ranks: list[ForkServerProcess]
    output: Path

    def text(self) -> str:
        """What all ranks have written so far, to stdout and stderr."""
        return self.output.read_text(encoding="utf-8", errors="replace")

    def codes(self) -> list[int | None]:
        """Exit codes, negative for signals, None while a rank lives."""
        return [rank.exitcode for rank in self.ranks]

    def members(self) -> dict[int, str]:
        """Command lines of the ranks that live and of their descendants, by process number."""
        sessions, found = {rank.pid for rank in self.ranks}, {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if fields[0] != "Z" and int(fields[3]) in sessions:
                    found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has just ended
        return found

    def wait(self, seconds: float) -> bool:
        """Whether all ranks, and what they have started, end within some seconds."""
        end = time.monotonic() + seconds
        while None in self.codes() or self.members():
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True

    def kill(self) -> None:
        """End what lives."""
        for number in self.members():
            try:
                os.kill(number, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for rank in self.ranks:
            rank.join()

    def finish(self, seconds: float) -> subprocess.CompletedProcess[str]:
        """Wait as a launcher does, which ends all ranks when one has failed.

        Raises:
            TimeoutError: they did not end; what they wrote is its message.
        """
        end = time.monotonic() + seconds
        try:
            while None in self.codes():
                if any(self.codes()):
                    self.wait(10)
                    break
                if time.monotonic() > end:
                    raise TimeoutError(self.text())
                time.sleep(0.05)
        finally:
            self.kill()
        failed = next(filter(None, self.codes()), 0)
        return subprocess.CompletedProcess([], failed, self.text(), "")


def start(
    script: Path,
    *arguments: object,
    ranks: int = 2,
    port: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Group:
    """Run a script on some ranks of this host.

    Args:
        script: run as ``__main__``.
        arguments: its arguments.
        ranks: how many.
        port: where they meet.
        environment: variables beside those of this process; ``AWS_*`` ones are not handed on.
    """
    descriptor, name = tempfile.mkstemp(suffix=".log")
    os.close(descriptor)
    given = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
    given |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port or free_port()), "WORLD_SIZE": str(ranks)}
    given |= {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": str(ranks), **(environment or {})}
    processes = [
        _context.Process(
            target=run_rank,
            args=(
                str(script),
                [str(each) for each in arguments],
                {**given, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                name,
            ),
        )
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    return Group(processes, Path(name))


def complete(
    script: Path,
    *arguments: object,
    ranks: int = 2,
    port: int | None = None,
    environment: Mapping[str, str] | None = None,
    seconds: float = 900,
) -> str:
    """Run a script on some ranks to its end; returns what they have written.

    Raises:
        AssertionError: one of them failed.
    """
    done = start(script, *arguments, ranks=ranks, port=port, environment=environment).finish(seconds)
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout
