"""The end of a build: one manifest and one report for all parts, and no picture twice where that is asked for."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segclip.data_pipelines.building.records import (
    PLAN,
    REPORT,
    UNITS,
    Plan,
    RejectedFile,
    UnitRecord,
    read_plan,
    read_records,
    write_record,
)
from segclip.data_pipelines.manifest import MANIFEST, Manifest, ShardEntry, describe
from segclip.data_pipelines.shard import read_shard
from segclip.data_pipelines.shard_writer import pack
from segclip.data_pipelines.storage.store import Store, open_store
from segclip.data_pipelines.superpixels import SuperpixelMethod

__all__ = ["Merged", "merge_set"]

_PICTURE_BYTES = 24  # of each sample in a record
# Shards that are written again at a time; most of it is waiting for the store.
_WRITERS = 4


@dataclass(frozen=True)
class Merged:
    """A finished set: its manifest, records read, and how many were rejected or changed, by what it was."""

    manifest: Manifest
    read: int
    rejected: dict[str, int]
    changes: dict[str, int]


def merge_set(url: str, report: Callable[[int, int], None] = lambda done, total: None) -> Merged:
    """Write the report and the manifest of a build whose parts are all done.

    Args:
        url: where the parts were built to.
        report: told how many of the shards that hold duplicates are written again, and of how many.

    Raises:
        ValueError: there is no build, a unit of it is missing, or nothing in it is fit for training.
    """
    store = open_store(url)
    plan = read_plan(store, {entry.path for entry in store.list()})
    if plan is None:
        raise ValueError(f"{store.url} holds no build ({PLAN}): run segclip-shards build first")
    done, faults = read_records(store, plan)
    missing = [unit for unit in range(plan.units) if unit not in done]
    if missing:
        why = f" ({faults[0]})" if faults else ""
        raise ValueError(
            f"{len(missing)} of the {plan.units} pieces of {store.url} are not built, the first is number {missing[0]}"
            f"{why}: run the builds of all parts (--part I/N) to their end, each with the same command"
        )
    records = [done[unit] for unit in range(plan.units)]
    if plan.options.get("unique"):
        records = _drop_duplicates(store, records, report)
    shards = tuple(shard for record in records for shard in record.shards)
    if not shards:
        raise ValueError(f"the build of {store.url} holds no samples: the causes are in {UNITS}")
    read = sum(record.read for record in records)
    rejected = _sorted(Counter(each.cause for record in records for each in record.rejected))
    changes = _sorted(sum((Counter(record.changes) for record in records), Counter()))
    method = plan.options.get("superpixels")
    manifest = Manifest(
        superpixels=None if method is None else SuperpixelMethod.model_validate(method),
        source=_source(plan, read, rejected, changes),
        shards=shards,
    )
    store.put(REPORT, _report(manifest, records, read, rejected, changes))
    store.put(MANIFEST, manifest.to_json())
    return Merged(manifest, read, rejected, changes)


def _sorted(counts: Counter[str]) -> dict[str, int]:
    """Most frequent first, equal ones by name."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _source(plan: Plan, read: int, rejected: dict[str, int], changes: dict[str, int]) -> dict[str, Any]:
    options = {name: value for name, value in plan.options.items() if name != "superpixels"}
    return {
        "builder": "segclip-shards build",
        "input": plan.source,
        "options": options,
        "read": read,
        "rejected": rejected,
        "changes": changes,
    }


def _report(
    manifest: Manifest,
    records: list[UnitRecord],
    read: int,
    rejected: dict[str, int],
    changes: dict[str, int],
) -> bytes:
    head = {
        "format": "segclip-build-report",
        "read": read,
        "kept": manifest.samples,
        "rejected": rejected,
        "changes": changes,
    }
    # One line for each file, so that it can be searched with grep.
    lines = [each.model_dump_json() for record in records for each in record.rejected]
    text = json.dumps(head, indent=1)[:-2] + ',\n "files": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n"
    return text.encode()


def _drop_duplicates(
    store: Store, records: list[UnitRecord], report: Callable[[int, int], None]
) -> list[UnitRecord]:
    """Write the shards again that hold a picture of an earlier one, without it; then the records.

    A shard is written before its record: where this is interrupted between both, the unit counts as not built.
    """
    first = _first_of_equals([record.pictures for record in records])
    starts = np.cumsum([0, *(record.kept for record in records)])
    if len(first) != starts[-1]:
        raise ValueError(
            f"the records of {store.url} do not name the picture of every sample: build it again"
        )
    duplicate = first != np.arange(len(first))
    names = [shard.path for record in records for shard in record.shards for _ in range(shard.count)]
    affected = [unit for unit in range(len(records)) if duplicate[starts[unit] : starts[unit + 1]].any()]
    total = int(duplicate.sum())

    def rewritten(unit: int) -> UnitRecord:
        part = slice(starts[unit], starts[unit + 1])
        record = _without(store, records[unit], duplicate[part], [names[each] for each in first[part]])
        write_record(store, record)
        return record

    dropped = 0
    with ThreadPoolExecutor(_WRITERS) as threads:
        for unit, record in zip(affected, threads.map(rewritten, affected), strict=True):
            dropped += records[unit].kept - record.kept
            records[unit] = record
            report(dropped, total)
    return records


def _first_of_equals(pictures: list[str]) -> NDArray[np.int64]:
    """For each sample the first one with the same picture in another file, or itself: int64 [samples]."""
    words = np.frombuffer(bytes.fromhex("".join(pictures)), dtype=np.uint64).reshape(-1, _PICTURE_BYTES // 8)
    order = np.lexsort((words[:, 0], words[:, 1]))  # stable: equal pictures stay in the order of the set
    ordered = words[order, :2]
    starts_group = np.ones(len(words), dtype=bool)
    starts_group[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    leaders = order[np.maximum.accumulate(np.where(starts_group, np.arange(len(words)), 0))]
    first = np.arange(len(words))
    first[order] = leaders
    same_file = words[first, 2] == words[:, 2]
    return np.where(same_file, np.arange(len(words)), first)


def _without(
    store: Store, record: UnitRecord, duplicate: NDArray[np.bool_], same_as: list[str]
) -> UnitRecord:
    """The record of a unit, after its duplicates are gone from its shards."""
    shards: list[ShardEntry] = []
    rejected = list(record.rejected)
    start = 0
    for entry in record.shards:
        drop = duplicate[start : start + entry.count]
        if not drop.any():
            shards.append(entry)
        else:
            shard = read_shard(store, entry)
            kept = []
            for index, sample in enumerate(shard.samples):
                if drop[index]:
                    origin, other = f"{entry.path}: {sample.key}", same_as[start + index]
                    detail = f"its picture is the same as one in {other}"
                    rejected.append(RejectedFile(origin=origin, cause="duplicate picture", detail=detail))
                else:
                    kept.append((sample.key, shard.members(sample)))
            if kept:
                packed, count = pack(kept)
                store.put(entry.path, packed)
                shards.append(describe(entry.path, packed, count))
        start += entry.count
    width = 2 * _PICTURE_BYTES
    pictures = "".join(
        record.pictures[width * n : width * (n + 1)] for n, gone in enumerate(duplicate) if not gone
    )
    return record.model_copy(
        update={"shards": tuple(shards), "rejected": tuple(rejected), "pictures": pictures}
    )
