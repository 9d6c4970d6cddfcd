"""Building a shard set from a source: restartable, by several processes, and in parts by several machines."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

from segclip.data_pipelines.building.options import Options
from segclip.data_pipelines.building.preparing import Preparer
from segclip.data_pipelines.building.records import (
    UNITS,
    Plan,
    RejectedFile,
    UnitRecord,
    read_plan,
    read_records,
    write_plan,
    write_record,
)
from segclip.data_pipelines.building.source import Raw, RefusedError, Rejected, Source, Unit, opened
from segclip.data_pipelines.manifest import ShardEntry, describe
from segclip.data_pipelines.shard_writer import Sample, pack
from segclip.data_pipelines.storage.store import Store, open_store
from segclip.data_pipelines.storage.urls import normalise_url
from segclip.data_pipelines.tar import LONGEST_NAME
from segclip.processes import Tick, run_tasks

__all__ = ["build_set"]

LONGEST_DETAIL = 300
# After so many records without a single good one something is wrong with all of them.
HOPELESS = 1000


@dataclass(frozen=True)
class _Task:
    """A unit to build: its number in the plan, and where its shards go."""

    url: str
    plan: str
    number: int
    unit: Unit
    options: Options


def build_set(
    url: str,
    source: Source,
    options: Options,
    *,
    processes: int = 1,
    part: tuple[int, int] = (0, 1),
    overwrite: bool = False,
    report: Callable[[int, int | None], None] = lambda done, total: None,
) -> int:
    """Write the shards of a source, or of a part of it, that are not there yet. ``merge_set`` then writes the manifest.

    Unit u belongs to part u modulo the number of parts. The bytes written depend on the plan alone: not on processes,
    parts or interruptions.

    Args:
        url: where to.
        source: what from.
        options: what the set is to be like.
        processes: how many work.
        part: (i, n): the i-th of n parts, counted from 0.
        overwrite: begin again where shards of another plan lie.
        report: told how many records are read, and of how many, where that is known.

    Returns:
        Records read now; those that were done before do not count.

    Raises:
        ValueError: another build lies there; the source or the store fails; not one record is fit for training.
    """
    if not 0 <= part[0] < part[1]:
        raise ValueError(f"part {part[0]}/{part[1]} is not one of 0/{part[1]} to {part[1] - 1}/{part[1]}")
    plan = Plan(units=len(source.units), source=source.description, options=options.describe())
    store = open_store(url, create=True)
    done = _continue(store, plan, overwrite)
    mine = range(part[0], plan.units, part[1])
    tasks = [
        _Task(normalise_url(url), plan.digest, number, source.units[number], options)
        for number in mine
        if number not in done
    ]
    before = [done[number].read for number in mine if number in done]
    progress = _Progress(_records(source, mine), len(mine), before, report)
    kept = sum(record.kept for record in done.values())
    waiting: list[UnitRecord] = []
    for record in run_tasks(_build_unit, tasks, processes=processes, tick=progress.advance):
        progress.unit_done(record.read)
        kept += record.kept
        waiting.append(record)
        if kept:
            for each in waiting:
                write_record(store, each)
            waiting = []
        elif sum(each.read for each in waiting) >= HOPELESS:
            break
    if waiting and (part[1] == 1 or sum(each.read for each in waiting) >= HOPELESS):
        raise ValueError(_nothing(waiting))
    for each in waiting:  # a small part may have nothing good; whether the whole has, merging tells
        write_record(store, each)
    return progress.now


def _records(source: Source, units: Sequence[int]) -> int | None:
    """How many records some units have, None where only reading them would tell."""
    known = [records for unit in units if (records := source.units[unit].records) is not None]
    return sum(known) if len(known) == len(units) else None


def _continue(store: Store, plan: Plan, overwrite: bool) -> dict[int, UnitRecord]:
    """The units that are done already; the plan is written where there is none."""
    held = {entry.path for entry in store.list()}
    begun = any(path.startswith(UNITS) for path in held)
    there = read_plan(store, held) if begun and not overwrite else None
    if there is None:
        write_plan(store, plan)
        return {}
    if there != plan:
        raise ValueError(
            f"{store.url} holds another build ({plan.difference(there)}): choose another place, or begin again with "
            "--overwrite"
        )
    return read_records(store, plan)[0]


def _nothing(records: list[UnitRecord]) -> str:
    faults = [each for record in records for each in record.rejected]
    read = sum(record.read for record in records)
    if not faults:
        return "the source has no samples: check its tars"
    ((cause, count),) = Counter(each.cause for each in faults).most_common(1)
    first = next(each for each in faults if each.cause == cause)
    return (
        f"not one of the first {read} records is fit for training; {cause}: {count} times, such as {first.origin}: "
        f"{first.detail}"
    )


class _Progress:
    """How much of a build is done; where the source does not say how much there is, judged by the units done."""

    def __init__(
        self, total: int | None, units: int, before: list[int], report: Callable[[int, int | None], None]
    ) -> None:
        self.now = 0
        self._total, self._units, self._report = total, units, report
        self._before = sum(before)
        self._in_units, self._units_done = sum(before), len(before)
        self.advance(0)

    def advance(self, more: int) -> None:
        self.now += more
        total = self._total
        if total is None and self._units_done:
            total = round(self._in_units / self._units_done * self._units)
        self._report(self._before + self.now, total)

    def unit_done(self, read: int) -> None:
        self._in_units += read
        self._units_done += 1
        self.advance(0)


def _build_unit(task: _Task, tick: Tick) -> UnitRecord:
    """Read a unit and write its shards: equal cuts of at most ``per_shard`` records."""
    records, found = task.unit.read()
    pieces = max(1, -(-records // task.options.per_shard))
    taker = _Taker(task.options)
    shards: list[ShardEntry] = []
    for piece in range(pieces):
        samples: list[Sample] = []
        size = (piece + 1) * records // pieces - piece * records // pieces
        for raw in islice(found, size):
            tick()
            if (sample := taker.take(raw)) is not None:
                samples.append(sample)
        if not samples:
            continue
        content, count = pack(samples)
        name = task.unit.stem if pieces == 1 else f"{task.unit.stem}-{piece:03d}"
        entry = describe(f"{name}.tar", content, count)
        opened(task.url).put(entry.path, content)
        shards.append(entry)
    return UnitRecord(
        plan=task.plan,
        unit=task.number,
        read=records,
        shards=tuple(shards),
        rejected=tuple(taker.rejected),
        changes=dict(sorted(taker.changes.items())),
        pictures="".join(taker.pictures),
    )


class _Taker:
    """Takes the records of a unit that are fit for training, and notes the others (see ``UnitRecord``)."""

    def __init__(self, options: Options) -> None:
        self._preparer = Preparer(options)
        self._unique = options.unique
        self._seen: dict[bytes, str] = {}
        self.changes = self._preparer.changes
        self.rejected: list[RejectedFile] = []
        self.pictures: list[str] = []

    def take(self, raw: Raw | Rejected) -> Sample | None:
        """A sample ready for a shard; None if it is rejected."""
        try:
            if isinstance(raw, Rejected):
                raise RefusedError(raw.cause, raw.detail)
            return raw.key, self._members(raw)
        except RefusedError as error:
            detail = _plain(str(error))[:LONGEST_DETAIL]
            self.rejected.append(RejectedFile(origin=_plain(raw.origin), cause=error.cause, detail=detail))
            return None

    def _members(self, raw: Raw) -> dict[str, bytes]:
        members, digest = self._preparer.members(raw)
        if (longest := max(len(f"{raw.key}.{each}".encode()) for each in members)) > LONGEST_NAME:
            detail = f"its key is too long: a member's name has {longest} bytes, more than {LONGEST_NAME}"
            raise RefusedError("key too long", detail)
        if self._unique:
            if self._seen.setdefault(digest, raw.file) != raw.file:
                raise RefusedError("duplicate picture", f"its picture is the same as {self._seen[digest]}")
            self.pictures.append((digest[:16] + hashlib.sha256(_plain(raw.file).encode()).digest()[:8]).hex())
        return members


def _plain(text: str) -> str:
    """Text without what JSON cannot carry, which a table may hold."""
    return text.encode("utf-8", "replace").decode()
