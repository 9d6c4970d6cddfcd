"""Stopping between two steps, on all ranks at the same one: because somebody asks for it, or data cannot be had.

Schedulers announce the end of a job's time by a signal, to one process or to all, sooner or later. So before each step
the ranks agree whether to make it: one small reduction on the CPU, which waits for no device.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import TypeVar

import torch
import torch.distributed as dist

from segclip.console import UserError, one_line
from segclip.rank_errors import RankError
from segclip.trainer.distributed import Ranks, gathered, patient_group
from segclip.trainer.watch import doing

__all__ = ["ASKED", "StopAsked", "Stopping"]

ASKED = 75
"""Exit code of a run that was asked to stop and has saved a checkpoint: put it in the queue again."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
Item = TypeVar("Item")


class StopAsked(UserError):
    """A signal asked to stop; raised on all ranks."""


class Stopping:
    """Watches for reasons to stop.

    Args:
        ranks: this process among all.

    Until ``close`` a signal ends this process with ``ASKED``: between steps, as ``next`` and ``finish`` say, or at
    once where no step is made: there nothing is lost.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._group = patient_group()
        self._asked = 0
        self._stepping = False
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}

    def close(self) -> None:
        """Let the signals do what they did before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self._asked = number
        if not self._stepping:
            print(f"[rank {self._ranks.rank}] {_told(number)}: no step is lost", file=sys.stderr, flush=True)
            os._exit(ASKED)

    def next(self, batches: Iterator[Item]) -> Item:
        """The next batch, once every rank has one.

        Raises:
            StopAsked: a signal has arrived at some rank.
            RankError: some rank cannot have its batch; raised on all ranks.
        """
        problem: Exception | None = None
        batch: Item | None = None
        self._stepping = True
        doing("getting the next batch")
        try:
            batch = next(batches)
        except (ValueError, OSError, UserError) as error:
            problem = error
        doing("the all-reduce that agrees on going on with the next step")
        verdict = torch.tensor([problem is not None, self._asked], dtype=torch.int32)
        dist.all_reduce(verdict, dist.ReduceOp.MAX, group=self._group)
        failed, asked = verdict.tolist()
        if asked:  # first: who ends a job signals the workers too, whose data is missed then
            raise StopAsked(_told(asked))
        if failed:
            self._raise(problem)
        return batch  # type: ignore[return-value]

    def finish(self) -> None:
        """No step follows.

        Raises:
            StopAsked: a signal has arrived at some rank during the last step.
        """
        asked = torch.tensor(self._asked, dtype=torch.int32)
        dist.all_reduce(asked, dist.ReduceOp.MAX, group=self._group)
        if asked:
            raise StopAsked(_told(int(asked)))
        self._stepping = False
        if self._asked:  # since the others were asked about it
            self._note(self._asked, None)

    def _raise(self, problem: Exception | None) -> None:
        problems = gathered(None if problem is None else one_line(problem), self._group)
        first = next(rank for rank, text in enumerate(problems) if text is not None)
        raise RankError(
            f"rank {first}: {problems[first]}", is_reporter=self._ranks.rank == first
        ) from problem


def _told(number: int) -> str:
    return f"asked to stop by {signal.Signals(number).name}"
