"""Sharing out tasks over processes that can be told to stop, and that stop when their parent dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, TypeVar

import torch

__all__ = ["Tick", "die_with_parent", "run_tasks"]

Tick = Callable[[], None]
"""Called by a task for each thing it has done."""

T = TypeVar("T")
R = TypeVar("R")
REPORT_SECONDS = 0.3
_done: Any = None
_stop: Any = None


class _StoppedError(Exception):
    """Raised inside a task that is no longer wanted."""


def run_tasks(
    function: Callable[[T, Tick], R], tasks: Sequence[T], *, processes: int, tick: Callable[[int], None]
) -> Iterator[R]:
    """The results of some tasks, as they come.

    Args:
        function: picklable; gets a task and a function to call for each thing done.
        tasks: picklable.
        processes: how many work; 1 works here.
        tick: told a few times a second how many more things are done.

    Raises:
        ValueError: of a task, or because a process was killed.
    """
    if processes <= 1 or len(tasks) <= 1:
        for task in tasks:
            yield function(task, lambda: tick(1))
        return
    # From a clean server process: the object store's client, which tasks and this process use, does not survive fork.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([function.__module__])
    done, stop = context.Value("q", 0), context.Event()
    with ProcessPoolExecutor(
        min(processes, len(tasks)), mp_context=context, initializer=_start, initargs=(done, stop)
    ) as pool:
        coming = iter(tasks)
        running: set[Future[R]] = set()
        told = 0
        try:
            while True:
                # Few wait, so that a long table is not copied into the queue at once.
                for task in islice(coming, 2 * processes - len(running)):
                    running.add(pool.submit(_run, function, task))
                if not running:
                    return
                finished, running = wait(running, timeout=REPORT_SECONDS, return_when=FIRST_COMPLETED)
                now = done.value
                tick(now - told)
                told = now
                for each in finished:
                    yield each.result()
        except BrokenProcessPool as error:
            raise ValueError(
                "a process was killed, most likely for want of memory: take fewer --processes; the same command goes "
                "on with what is missing"
            ) from error
        finally:
            stop.set()
            for each in running:
                each.cancel()


def _start(done: Any, stop: Any) -> None:
    """Prepare a process for its tasks."""
    global _done, _stop
    _done, _stop = done, stop
    # Ctrl-C reaches every process of a terminal; the parent tells these to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=die_with_parent, daemon=True).start()


def die_with_parent() -> None:
    """A pool's process whose parent was killed would wait for tasks for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(function: Callable[[T, Tick], R], task: T) -> R:
    return function(task, _tick)


def _tick() -> None:
    if _stop.is_set():
        raise _StoppedError
    with _done.get_lock():
        _done.value += 1
