"""Writing checkpoints that are whole or absent, while training goes on.

``<run>/checkpoints/step-00001234/`` is written by all ranks under a temporary name; every file is flushed to the disk
and hashed; only then does rank 0 rename the folder, and last the file ``latest`` is replaced. DeepSpeed's own
``latest`` appears before the other ranks have finished writing, so it is neither written nor read.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from segclip.console import UserError, warn
from segclip.free_space import describe_unwritten, free_bytes
from segclip.trainer.checkpoints.config import CheckpointConfig
from segclip.trainer.checkpoints.durable import flush_folder, write_flushed
from segclip.trainer.checkpoints.folder import (
    CHECKSUMS,
    WRITING,
    checkpoint_folder,
    complete,
    remove,
    remove_unfinished,
    step_name,
    step_of,
)
from segclip.trainer.checkpoints.integrity import sha256_of
from segclip.trainer.checkpoints.retention import superfluous
from segclip.trainer.checkpoints.train_state import STATE, TrainState
from segclip.trainer.checkpoints.upload import Uploads
from segclip.trainer.distributed import Ranks, agreed, gathered, patient_group
from segclip.trainer.faults import fail_at
from segclip.trainer.watch import doing

__all__ = ["CheckpointWriter"]


@dataclass
class Cost:
    """What the last checkpoint has cost."""

    failed: int = 0
    """Checkpoints so far that could not be written."""
    blocked: float = 0.0
    """Seconds that training waited for it."""
    total: float = 0.0
    """Seconds until it was there."""
    interval: float = 0.0
    """Seconds of training between the one before and this one."""

    @property
    def share(self) -> float:
        """Part of the time from one checkpoint to the next in which training waited."""
        return self.blocked / (self.interval + self.blocked)

    def metrics(self) -> dict[str, float]:
        """For the log; empty before the first checkpoint."""
        if not self.interval:
            return {}
        return {
            "checkpoint/seconds": self.total,
            "checkpoint/blocked_seconds": self.blocked,
            "checkpoint/blocked_share": self.share,
            "checkpoint/failed": float(self.failed),
        }


class CheckpointWriter:
    """Saves checkpoints of a run; every rank has one, and calls ``save`` and ``wait`` as the others do.

    What cannot be written (a full disk) is said, and tried again with the next checkpoint: to stop would lose the steps
    since the last one for certain.
    """

    def __init__(
        self,
        engine: Any,
        config: CheckpointConfig,
        run_dir: str | Path,
        config_yaml: str,
        ranks: Ranks,
        uploads: Uploads | None = None,
    ) -> None:
        from segclip.trainer.checkpoints.staging import StagingEngine

        self._engine, self._config, self._ranks, self._config_yaml = engine, config, ranks, config_yaml
        self._root, self._uploads = checkpoint_folder(run_dir), uploads
        # Its own: the main thread's collectives go on meanwhile.
        self._group = patient_group()
        self._staging = StagingEngine(pin=ranks.device.type == "cuda")
        self._thread: threading.Thread | None = None
        self._problem: BaseException | None = None
        self._left = time.perf_counter()
        self.cost = Cost()

    def save(self, state: TrainState) -> None:
        """Copy what training is about to change, and have it written; waits for the checkpoint before."""
        begin = time.perf_counter()
        interval = begin - self._left
        self.wait()
        self.cost = Cost(self.cost.failed, interval=interval)
        doing(f"saving the checkpoint of step {state.step}")
        writing = self._root / f"{WRITING}{step_name(state.step)}"
        try:
            agreed(self._ranks, lambda: self._prepare(writing, state))
        except UserError as error:
            self._failed(error, writing)
        else:
            files = self._copy(writing)
            self.cost.blocked = time.perf_counter() - begin
            self._thread = threading.Thread(
                target=self._write, args=(writing, state, files, begin), name="checkpoint", daemon=True
            )
            self._thread.start()
        if not self._config.background:
            self.wait()
        self._left = time.perf_counter()

    def wait(self, last: bool = False) -> None:
        """Wait until the checkpoint that is being written is published.

        Raises:
            UserError: ``last`` is set and it could not be written; on all ranks.
        """
        if self._thread is not None:
            doing("waiting for the checkpoint to be written")
            self._thread.join()
            self._thread = None
        problem, self._problem = self._problem, None
        # One that could not be written has been said; any other is an error of this program.
        if problem is not None and (last or not isinstance(problem, UserError)):
            raise problem

    def _failed(self, problem: BaseException, writing: Path) -> None:
        self._problem = problem
        if not isinstance(problem, UserError):
            return
        self.cost.failed += 1
        if self._ranks.is_first:
            shutil.rmtree(writing, ignore_errors=True)  # what is there of it takes the room of the next
            warn(f"no checkpoint: {problem}. Training goes on, and the next one is tried")

    def _prepare(self, writing: Path, state: TrainState) -> None:
        if not self._ranks.is_first:
            return
        remove_unfinished(self._root)
        writing.mkdir(parents=True)
        _write_text(writing / STATE, json.dumps(asdict(state), indent=1))
        _write_text(writing / "config.yaml", self._config_yaml)

    def _copy(self, writing: Path) -> dict[Path, Any]:
        """What this rank is to write, by file."""
        engine = self._engine
        # Nothing of DeepSpeed's is to touch the disk here: an error of one rank would leave the others waiting.
        engine._copy_recovery_script = lambda save_path: None
        own, engine.checkpoint_engine = engine.checkpoint_engine, self._staging
        try:
            engine.save_checkpoint(str(self._root), tag=writing.name, save_latest=False)
        finally:
            engine.checkpoint_engine = own
        return self._staging.take()

    def _write(self, writing: Path, state: TrainState, files: dict[Path, Any], begin: float) -> None:
        """Files of this rank, and on the first one those that are small; then publish."""
        try:
            sums = agreed(self._ranks, lambda: self._write_files(writing, files, state.step), self._group)
            joined = {name: digest for part in gathered(sums, self._group) for name, digest in part.items()}
            agreed(
                self._ranks,
                lambda: self._publish(writing, state, joined) if self._ranks.is_first else None,
                self._group,
            )
            cost = self.cost
            cost.total = time.perf_counter() - begin
            if not self._config.background:
                cost.blocked = cost.total
            if self._ranks.is_first:
                print(
                    f"saved {self._root / writing.name.removeprefix(WRITING)} in {cost.total:.1f} s; training waited "
                    f"{cost.blocked:.1f} s ({100 * cost.share:.1f} % of the time since the last one)",
                    flush=True,
                )
        except BaseException as error:  # raised by wait
            self._failed(error, writing)

    def _write_files(self, writing: Path, files: dict[Path, Any], step: int) -> dict[str, str]:
        sums = {}
        for path, value in files.items():
            fail_at(f"write {path.name}", step, self._ranks.rank)
            _save(value, path)
            fail_at(f"wrote {path.name}", step, self._ranks.rank, path=path)
            sums[path.name] = sha256_of(path)
        if self._ranks.is_first:
            sums |= {name: sha256_of(writing / name) for name in (STATE, "config.yaml")}
        return sums

    def _publish(self, writing: Path, state: TrainState, sums: dict[str, str]) -> None:
        root, final, step = self._root, self._root / writing.name.removeprefix(WRITING), state.step
        fail_at("publish checksums", step)
        _write_text(writing / CHECKSUMS, json.dumps(sums, indent=1, sort_keys=True))
        flush_folder(writing)
        fail_at("publish rename", step)
        if final.exists():  # damaged, or of steps that are made again
            os.rename(final, root / f"{WRITING}replaced-{final.name}")
        os.rename(writing, final)
        flush_folder(root)
        fail_at("publish pointer", step)
        try:
            self._point_and_prune(final.name, state)
        except OSError as error:
            warn(f"{final.name} is saved, but not all that follows it: {error}")
        if self._uploads is not None:
            self._uploads.begin()
        fail_at("publish done", step)

    def _point_and_prune(self, latest: str, state: TrainState) -> None:
        """Name the newest and the best checkpoint, and delete those that need not be kept."""
        root = self._root
        folders = {step_of(folder): folder for folder in complete(root)}
        best = self._best(folders, state)
        for name, target in (("latest", latest), ("best", None if best is None else folders[best].name)):
            if target is not None:
                _write_text(root / f"{name}.new", target + "\n")
                fail_at(f"publish {name}", state.step)
                os.replace(root / f"{name}.new", root / name)
        flush_folder(root)
        fail_at("publish prune", state.step)
        shutil.rmtree(root / f"{WRITING}replaced-{latest}", ignore_errors=True)
        old = [folders[step] for step in superfluous(folders, best, self._config)]
        if self._uploads is not None:
            self._uploads.delete(old)
        else:
            for folder in old:
                remove(folder)

    def _best(self, folders: Mapping[int, Path], state: TrainState) -> int | None:
        """Step of the best checkpoint that there is: the one of the best score may not have been written."""
        if state.best is None or not self._config.keep_best:
            return None
        if state.best.step in folders:
            return state.best.step
        pointer = self._root / "best"
        named = pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else ""
        return next((step for step, folder in folders.items() if folder.name == named), None)


def _save(value: Any, path: Path) -> None:
    with _told(path, _bytes_of(value)), open(path, "wb") as file:
        torch.save(value, file)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _told(path: Path, size: int) -> Iterator[None]:
    """Let an error of writing name the file, its bytes and those that are free."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and (free_bytes(path) or 0) < size:
            # torch makes one of whatever the file says.
            error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise OSError(
            f"{describe_unwritten(error, path, size)}; make room, or lower checkpoint.keep_last"
        ) from error


def _bytes_of(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(_bytes_of(each) for each in value.values())
    if isinstance(value, (list, tuple)):
        return sum(_bytes_of(each) for each in value)
    return 0


def _write_text(path: Path, text: str) -> None:
    with _told(path, len(text)):
        write_flushed(path, text.encode())
