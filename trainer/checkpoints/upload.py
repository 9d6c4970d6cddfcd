"""Sending checkpoints to an object store while training, and bringing them back before it.

Both happen in a process of their own: the client's threads do not survive the forks of data workers, and neither
hashing nor sending then competes with the training loop for its interpreter.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import TypeVar

from segclip.console import UserError, one_line, warn
from segclip.processes import die_with_parent
from segclip.trainer.checkpoints import store
from segclip.trainer.checkpoints.folder import checkpoint_folder, complete, remove, set_aside, step_of
from segclip.trainer.checkpoints.integrity import find_intact, newest_intact, none_intact
from segclip.trainer.config import RunConfig
from segclip.trainer.distributed import Ranks, broadcast, on_first
from segclip.trainer.watch import doing

__all__ = ["Uploads", "fetch_newer", "restored"]

T = TypeVar("T")
STOP_SECONDS = 120.0
"""Longest wait of a run that stops for what is being sent: who ends a job kills what has not ended soon."""
OF_A_JOB = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Signals that reach every process of a job; what they mean is for the training process to say."""


class Uploads:
    """Copies of a run's checkpoints at ``checkpoint.upload``, made on a thread; for the first rank.

    A failure is said and training goes on: the next checkpoint makes up for it. Checkpoints that are published while
    one is being sent wait for it together, so that a slow store holds nothing up.
    """

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._wanted = False
        self._failure: str | None = "not tried yet"
        self._reading: frozenset[Path] = frozenset()
        self._doomed: set[Path] = set()

    def begin(self) -> None:
        """A checkpoint has been published: upload what is not there yet, and delete old ones there."""
        if self._config.checkpoint.upload is None:
            return
        with self._lock:
            self._wanted = True
            self._reading |= self._published()
            if not self._is_sending():
                self._thread = threading.Thread(target=self._work, name="upload", daemon=True)
                self._thread.start()

    def delete(self, folders: Iterable[Path]) -> None:
        """Delete checkpoints, those that are being sent as soon as that is over."""
        with self._lock:
            for folder in folders:
                if folder in self._reading and self._is_sending():
                    self._doomed.add(folder)
                else:
                    remove(folder)

    def wait(self) -> None:
        """Wait until all that is published has been sent, or could not be."""
        thread = self._thread
        if thread is not None:
            doing("waiting for checkpoints to be uploaded")
            thread.join()

    def stop(self) -> None:
        """As ``wait``, for ``STOP_SECONDS`` at most: what is on the disk is sent by the run that goes on with it."""
        thread = self._thread
        if thread is None:
            return
        doing("waiting for checkpoints to be uploaded")
        thread.join(STOP_SECONDS)
        if thread.is_alive():
            warn(
                f"checkpoints are still being sent to {self._config.checkpoint.upload} after {STOP_SECONDS:g} s: the "
                "run stops without them. What is missing there is sent with the next checkpoint of the same command"
            )

    def finish(self) -> None:
        """Wait, and try once more what failed.

        Raises:
            UserError: that failed again.
        """
        self.wait()
        if self._failure is not None:
            self.begin()
            self.wait()
        if self._failure is not None:
            raise UserError(
                f"the run is complete, but not all of its checkpoints are at {self._config.checkpoint.upload}: "
                f"{self._failure}. The same command tries again"
            )

    def _is_sending(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._wanted:
                    self._reading = frozenset()
                    self._thread = None
                    return
                self._wanted, self._failure = False, "they were not sent to their end"
                self._reading = self._published()
            self._send()
            with self._lock:
                while self._doomed:
                    self._remove(self._doomed.pop())

    def _remove(self, folder: Path) -> None:
        try:
            remove(folder)
        except OSError as error:  # what is sent next does not depend on it
            warn(f"{folder} could not be deleted: {one_line(error)}")

    def _published(self) -> frozenset[Path]:
        return frozenset(complete(checkpoint_folder(self._config.run_dir)))

    def _send(self) -> None:
        config, begin = self._config, time.perf_counter()
        rule, url = config.checkpoint, config.checkpoint.upload
        try:
            sent = _apart(store.send, config.run_dir, url, rule, config.name)
        except Exception as error:
            # A fault of ours too must not end the thread: nothing would be sent from then on.
            self._failure = one_line(error)
            warn(
                f"checkpoints could not be uploaded to {url}: {self._failure}. Training goes on; the next checkpoint "
                "tries again"
            )
            return
        self._failure = None
        if sent:
            seconds = time.perf_counter() - begin
            names, size = ", ".join(sorted(sent)), sum(sent.values()) / 1e6
            print(f"uploaded {names} to {url}: {size:,.1f} MB in {seconds:.1f} s", flush=True)


def restored(config: RunConfig, ranks: Ranks) -> Path | None:
    """The newest intact checkpoint of a run's folder and of ``checkpoint.upload``, in the folder; called by every rank.

    Damaged ones in the folder are set aside as soon as there is one to go on from.

    Args:
        config: of the run.
        ranks: this process among all.

    Raises:
        RankError: there are checkpoints, but none is intact, here or there; or the run's folder has none, and it cannot
            be told whether the store has one, or it cannot be brought here: training would begin anew. Or the URL is
            another run's.
    """
    url, run_dir = config.checkpoint.upload, config.run_dir
    if url is None:
        return newest_intact(run_dir, ranks)
    local, damages = find_intact(run_dir, ranks)
    found: list[Path | None] = [None]

    def bring() -> None:
        try:
            found[0] = fetch_newer(config, local)
        except store.DamagedError as error:
            raise UserError(none_intact(run_dir, [*damages.values(), str(error)], url)) from error
        if local is None and found[0] is None and damages:
            raise UserError(none_intact(run_dir, damages.values(), url))
        set_aside(folder for folder in damages if folder != found[0])

    on_first(ranks, bring)
    fetched: Path | None = broadcast(found[0])
    return local if fetched is None else fetched


def fetch_newer(config: RunConfig, local: Path | None) -> Path | None:
    """Bring the newest checkpoint of the store here if it is newer than ``local``; returns its folder.

    Raises:
        UserError, ValueError, OSError: there is no ``local``, and the store's cannot be had; or it is another run's.
    """
    url, begin = config.checkpoint.upload, time.perf_counter()
    after = -1 if local is None else step_of(local)
    try:
        found = _apart(store.fetch, url, config.run_dir, after, config.name)
    except (store.DamagedError, OSError, ValueError) as error:
        if local is None:
            raise
        warn(f"{url} may have a newer checkpoint than {local.name}, but it cannot be had: {one_line(error)}")
        return None
    if found is not None:
        print(f"fetched {found} in {time.perf_counter() - begin:.1f} s", flush=True)
    return found


def _apart(function: Callable[..., T], *arguments: object) -> T:
    """The result of a function in another process, which ends when this one does."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([store.__name__])
    _start_server()
    try:
        with ProcessPoolExecutor(1, mp_context=context, initializer=_start) as pool:
            return pool.submit(function, *arguments).result()
    except BrokenProcessPool as error:
        raise UserError(
            "its process was killed, most likely for want of memory or by the operating system"
        ) from error


def _start_server() -> None:
    """Start the process that forks, if it does not run, so that no signal to the whole job ends it.

    It would take its forks with it in the eyes of the pool. What is blocked in a thread stays so in what it starts.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, OF_A_JOB)
    try:
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, OF_A_JOB)  # the tracker's start has let them through again
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start() -> None:
    for number in OF_A_JOB:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=die_with_parent, daemon=True).start()
