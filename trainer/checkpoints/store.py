"""Copies of a run's checkpoints in an object store, whole or absent there too.

Below a URL lies ``step-00001234/`` with the files of that checkpoint. Its list ``checksums.json`` is written last and
deleted first: without it nothing is a checkpoint. While files are sent, the same list lies there as ``uploading.json``:
an upload that was cut short goes on where it stopped if it is of the same bytes, and starts anew otherwise.

The client's threads would not survive the forks of data workers: while training, call this through
``segclip.trainer.checkpoints.upload``, which does it in a process of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import yaml

from segclip.console import UserError, warn
from segclip.data_pipelines.errors import OF_THE_SHARD, StoreError
from segclip.data_pipelines.storage.store import Entry, Store, open_store
from segclip.data_pipelines.storage.urls import local_path
from segclip.trainer.checkpoints.durable import flush_folder, write_flushed
from segclip.trainer.checkpoints.folder import (
    CHECKSUMS,
    STEP_NAME,
    WRITING,
    checkpoint_folder,
    complete,
    remove,
    set_aside,
    step_name,
    step_of,
)
from segclip.trainer.checkpoints.retention import Retention, superfluous
from segclip.trainer.checkpoints.train_state import STATE, read_state
from segclip.trainer.faults import fail_at

__all__ = [
    "DamagedError",
    "OtherRunError",
    "Stored",
    "checksums_of",
    "damaged_files",
    "fetch",
    "newest",
    "send",
    "stored",
    "upload",
]

UNFINISHED = "uploading.json"
FETCHING = f"{WRITING}fetched-"
# Files fetched or hashed side by side: those of several ranks.
STREAMS = 4


class DamagedError(UserError):
    """A checkpoint whose bytes are not those that were written."""


class OtherRunError(UserError):
    """A place that holds the checkpoints of another run."""


@dataclass(frozen=True)
class Stored:
    """What lies below ``step-XXXXXXXX/`` of a store."""

    step: int
    entries: dict[str, Entry]
    """By name within the folder."""

    @property
    def name(self) -> str:
        return step_name(self.step)

    @property
    def is_complete(self) -> bool:
        return CHECKSUMS in self.entries

    @property
    def size(self) -> int:
        return sum(entry.size for entry in self.entries.values())


def stored(store: Store, folder: str | None = None) -> list[Stored]:
    """All checkpoints of a store, torn ones too, oldest first; or the one in a folder, if it is there."""
    found: dict[int, dict[str, Entry]] = {}
    for entry in store.list(folder):
        place, _, name = entry.path.partition("/")
        step = STEP_NAME.fullmatch(place)
        if step is not None and name:
            found.setdefault(int(step[1]), {})[name] = entry
    return [Stored(step, found[step]) for step in sorted(found)]


def newest(url: str) -> str | None:
    """Name of the newest complete checkpoint at a URL, such as ``step-00001234``, or None.

    Raises:
        ValueError: the store is out of reach, or the URL is bad.
    """
    names = [each.name for each in stored(open_store(url, create=True)) if each.is_complete]
    return names[-1] if names else None


def upload(folder: Path, url: str) -> int:
    """Copy one published checkpoint to ``url``; what is there already of the same bytes is not sent again.

    Returns:
        Bytes sent.

    Raises:
        ValueError: the store is out of reach or refuses, or the URL is bad.
        OSError: a file cannot be read.
    """
    store = open_store(url, create=True)
    name, step = folder.name, step_of(folder)
    content = (folder / CHECKSUMS).read_bytes()
    manifest, unfinished = f"{name}/{CHECKSUMS}", f"{name}/{UNFINISHED}"
    there = {entry.path: entry.size for entry in store.list(name)}

    def has_list(path: str) -> bool:
        return there.get(path) == len(content) and bytes(store.get(path)) == content

    if has_list(manifest):
        store.delete([path for path in [unfinished] if path in there])
        return 0
    if manifest in there:
        # Of steps that are made again: from here on it is no checkpoint.
        store.delete([manifest])
    if not has_list(unfinished):
        store.delete([path for path in there if path != manifest])
        store.put(unfinished, content)
        there = {}
    sent = 0
    for file in sorted(json.loads(content)):
        path, size = f"{name}/{file}", (folder / file).stat().st_size
        if there.get(path) != size:
            store.put_file(path, folder / file)
            sent += size
            fail_at("upload file", step)
    fail_at("upload manifest", step)
    store.put(manifest, content)
    fail_at("upload end", step)
    store.delete([unfinished])
    return sent


def send(run_dir: str | Path, url: str, rule: Retention, run: str | None = None) -> dict[str, int]:
    """Upload the checkpoints of a run that ``rule`` keeps and that are not at ``url``, newest first; then delete there
    what it keeps no longer, and what is torn.

    Args:
        run_dir: folder of the run.
        url: the store.
        rule: what is kept there.
        run: name of the run that checkpoints there must be of.

    Returns:
        Bytes sent, by name of the checkpoint; those that were there are left out.

    Raises:
        OtherRunError: they are another run's.
        ValueError, OSError: as ``upload``.
    """
    _check_run(open_store(url, create=True), run)
    root = checkpoint_folder(run_dir)
    local = complete(root)
    best = read_state(local[-1]).best if local else None
    best_step = None if best is None else best.step
    own = {step_of(folder): folder for folder in local}
    passed = superfluous(own, best_step, rule)
    sent = {
        own[step].name: upload(own[step], url) for step in sorted(own, reverse=True) if step not in passed
    }
    store = open_store(url, create=True)
    there = stored(store)
    old = superfluous((each.step for each in there if each.is_complete), best_step, rule)
    for each in there:
        if each.step in old or not each.is_complete:
            _remove(store, each)
    return {name: size for name, size in sent.items() if size}


def fetch(url: str, run_dir: str | Path, after: int = -1, run: str | None = None) -> Path | None:
    """Bring the newest intact checkpoint at ``url`` into a run's folder, as if it had been written there.

    One whose bytes are not those that were uploaded is passed over for the one before. There it counts no longer as a
    checkpoint then, or it would stay the newest, and good ones be deleted in its stead; unless the run had nothing else
    to go on from, since it is all that is left.

    Args:
        url: the store.
        run_dir: folder of the run.
        after: only one of a later step than this.
        run: name of the run that it must be of.

    Returns:
        The published folder, or None if there is none of a later step.

    Raises:
        DamagedError: all there are damaged.
        OtherRunError: they are another run's.
        UserError: no room on the disk.
        ValueError: the store is out of reach.
        OSError: it cannot be written.
    """
    store = open_store(url, create=True)
    _check_run(store, run)
    root = checkpoint_folder(run_dir)
    problems: list[tuple[Stored, str]] = []
    found: Path | None = None
    for each in reversed(stored(store)):
        if not each.is_complete or each.step <= after:
            continue
        try:
            found = _fetch_one(store, each, root)
            break
        except DamagedError as error:
            problems.append((each, str(error)))
    if found is not None or after >= 0:
        for each, problem in problems:
            _disown(store, each, problem)
    if found is None and problems:
        raise DamagedError("; ".join(problem for _, problem in problems))
    return found


def checksums_of(store: Store, each: Stored) -> dict[str, str]:
    """sha256 of every file of a complete checkpoint, by name.

    Raises:
        DamagedError: the list is no such list, or names something outside its folder.
    """
    where = f"{store.url}/{each.name}/{CHECKSUMS}"
    try:
        content = bytes(store.get(f"{each.name}/{CHECKSUMS}"))
    except StoreError as error:
        if error.cause not in OF_THE_SHARD:
            raise
        raise DamagedError(str(error)) from error
    try:
        sums = json.loads(content)
    except ValueError as error:
        raise DamagedError(f"{where} is not JSON: {error}") from error
    if not isinstance(sums, dict) or not {STATE, "config.yaml"} <= sums.keys():
        raise DamagedError(f"{where} does not list the files of a checkpoint")
    for name, digest in sums.items():
        if Path(name).is_absolute() or ".." in Path(name).parts or not isinstance(digest, str):
            raise DamagedError(f"{where} names {name!r}, which is no file of a checkpoint")
    return sums


def damaged_files(
    store: Store, each: Stored, report: Callable[[int], None], into: Path | None = None
) -> list[str]:
    """What is wrong with a complete checkpoint, a line for each file that is missing or of other bytes.

    Args:
        store: where it lies.
        each: the checkpoint.
        report: told how many more bytes have been read.
        into: a folder to write the files to on the way.

    Raises:
        ValueError: the store is out of reach.
        OSError: a file cannot be written.
    """
    sums = checksums_of(store, each)

    def look(name: str) -> str | None:
        where = f"{store.url}/{each.name}/{name}"
        if name not in each.entries:
            return f"{where} is missing"
        found = _read(store, each.entries[name], report, None if into is None else into / name)
        if found == sums[name]:
            return None
        return f"{where} has sha256 {found[:12]}..., not {sums[name][:12]}... as when it was written"

    with ThreadPoolExecutor(STREAMS) as pool:
        return [line for line in pool.map(look, sorted(sums)) if line is not None]


def _read(store: Store, entry: Entry, report: Callable[[int], None], into: Path | None) -> str:
    """sha256 of an object, which is written to a file if there is one, and flushed."""
    digest = hashlib.sha256()
    if into is None:
        for piece in store.pieces(entry.path, entry.size):
            digest.update(piece)
            report(len(piece))
        return digest.hexdigest()
    into.parent.mkdir(parents=True, exist_ok=True)
    with open(into, "wb") as file:
        for piece in store.pieces(entry.path, entry.size):
            digest.update(piece)
            file.write(piece)
            report(len(piece))
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _fetch_one(store: Store, each: Stored, root: Path) -> Path:
    writing, final = root / f"{FETCHING}{each.name}", root / each.name
    root.mkdir(parents=True, exist_ok=True)
    for left in root.glob(f"{FETCHING}*"):
        shutil.rmtree(left)
    free = shutil.disk_usage(root).free
    if free < each.size:
        raise UserError(
            f"{root} has {free:,} bytes free, and {store.url}/{each.name} takes {each.size:,}: make room, or give a "
            "run_dir on another disk"
        )
    print(f"fetching {store.url}/{each.name}: {each.size / 1e6:,.1f} MB", flush=True)
    writing.mkdir()
    problems = damaged_files(store, each, lambda count: None, writing)
    if problems:
        shutil.rmtree(writing)
        raise DamagedError("; ".join(problems))
    write_flushed(writing / CHECKSUMS, bytes(store.get(f"{each.name}/{CHECKSUMS}")))
    flush_folder(writing)
    if final.exists():  # torn or damaged
        set_aside([final])
    os.rename(writing, final)
    flush_folder(root)
    return final


def _disown(store: Store, each: Stored, problem: str) -> None:
    """Let a damaged checkpoint be one no longer; what is left of it is deleted by the next ``send``."""
    print(f"{store.url}/{each.name} is damaged and not used: {problem}", file=sys.stderr, flush=True)
    try:
        store.delete([each.entries[CHECKSUMS].path])
    except StoreError as error:  # what has been fetched, or lies here, can be gone on from all the same
        warn(f"it still counts as a checkpoint there: {error}")


def _check_run(store: Store, run: str | None) -> None:
    """Refuse a place whose newest checkpoint is of a run of another name."""
    known = [each for each in stored(store) if each.is_complete and "config.yaml" in each.entries]
    if run is None or not known:
        return
    try:
        found = yaml.safe_load(bytes(store.get(f"{known[-1].name}/config.yaml")))["name"]
    except (yaml.YAMLError, TypeError, KeyError):
        return  # damaged: of whom cannot be told
    if found != run:
        raise OtherRunError(
            f"{store.url} holds checkpoints of the run {found!r}, not of {run!r}: give checkpoint.upload a URL of this "
            "run's own"
        )


def _remove(store: Store, each: Stored) -> None:
    """Its list first: what is left if this is cut short is no checkpoint."""
    folder = local_path(store.url)
    if folder is not None:
        remove(folder / each.name)
        return
    if each.is_complete:
        store.delete([each.entries[CHECKSUMS].path])
    store.delete([entry.path for name, entry in each.entries.items() if name != CHECKSUMS])
