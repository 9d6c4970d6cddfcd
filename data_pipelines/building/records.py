"""What a build leaves behind beside its shards: its plan, and a record of each unit that is done.

``build/plan.json`` says what is built from what; ``build/units/00012.json`` which shards a unit gave and what was not
taken. A unit counts as done when its record names this plan and its shards lie there in the sizes it states.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from segclip.data_pipelines.manifest import ShardEntry
from segclip.data_pipelines.storage.store import Store

__all__ = [
    "PLAN",
    "REPORT",
    "UNITS",
    "Plan",
    "RejectedFile",
    "UnitRecord",
    "read_plan",
    "read_records",
    "write_plan",
    "write_record",
]

PLAN = "build/plan.json"
UNITS = "build/units/"
REPORT = "report.json"
_READERS = 16


class RejectedFile(BaseModel):
    """Something that did not get into the set: what it is called, the kind of fault, the fault itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    origin: str
    cause: str
    detail: str


# What people call settings of a plan that are not options themselves.
_CALLED = {"tars_together": "the number of tars in a shard (by --per-shard)"}


class Plan(BaseModel):
    """What is built from what. The same plan gives the same bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: str = Field(default="segclip-build", pattern="^segclip-build$")
    version: int = Field(default=1, ge=1, le=1)
    units: int = Field(ge=1, description="Parts of the source, each built on its own.")
    source: dict[str, Any]
    options: dict[str, Any]

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()

    def difference(self, other: Plan) -> str:
        """The first setting in which another plan differs, and both values."""
        for part in ("source", "options"):
            mine, others = getattr(self, part), getattr(other, part)
            for name in sorted(mine.keys() | others.keys()):
                if mine.get(name) != others.get(name):
                    called = _CALLED.get(name, f"{part} {name}")
                    return f"{called} was {others.get(name)!r} and is now {mine.get(name)!r}"
        return f"it had {other.units} units and now has {self.units}"


class UnitRecord(BaseModel):
    """What became of a unit.

    Attributes:
        plan: digest of the plan it was built by.
        unit: its number.
        read: records of the source.
        shards: the shards it gave.
        rejected: the records that are in none of them, and why.
        changes: how often something was changed, by what it was.
        pictures: where the plan wants unique pictures: for each sample kept, in order, 16 bytes of the SHA-256 of its
            picture and 8 of that of its file's name, in hexadecimal.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    plan: str
    unit: int = Field(ge=0)
    read: int = Field(ge=0)
    shards: tuple[ShardEntry, ...]
    rejected: tuple[RejectedFile, ...]
    changes: dict[str, int]
    pictures: str = Field(default="", pattern="^([0-9a-f]{48})*$")

    @property
    def kept(self) -> int:
        return sum(shard.count for shard in self.shards)


def _record_path(unit: int) -> str:
    return f"{UNITS}{unit:05d}.json"


def _json(model: BaseModel) -> bytes:
    return (model.model_dump_json(indent=1) + "\n").encode()


def write_plan(store: Store, plan: Plan) -> None:
    store.put(PLAN, _json(plan))


def write_record(store: Store, record: UnitRecord) -> None:
    store.put(_record_path(record.unit), _json(record))


def read_plan(store: Store, held: Iterable[str]) -> Plan | None:
    """The plan of the build in a store whose objects are ``held``; None if there is none.

    Raises:
        ValueError: it is not readable.
    """
    if PLAN not in held:
        return None
    try:
        return Plan.model_validate_json(bytes(store.get(PLAN)))
    except ValidationError as error:
        raise ValueError(
            f"{store.url}/{PLAN} is not readable, so nothing tells what the shards there are: build elsewhere, or "
            "again with --overwrite"
        ) from error


def read_records(store: Store, plan: Plan) -> tuple[dict[int, UnitRecord], list[str]]:
    """The records of the units that are done, and, for people, why others that have a record are not."""
    sizes = {entry.path: entry.size for entry in store.list()}
    there = [unit for unit in range(plan.units) if _record_path(unit) in sizes]
    digest = plan.digest
    done: dict[int, UnitRecord] = {}
    faults: list[str] = []
    with ThreadPoolExecutor(_READERS) as threads:
        contents = threads.map(lambda unit: bytes(store.get(_record_path(unit))), there)
        for unit, content in zip(there, contents, strict=True):
            try:
                record = UnitRecord.model_validate_json(content)
            except ValidationError:
                faults.append(f"{_record_path(unit)} is not readable")
                continue
            wrong = next(
                (shard.path for shard in record.shards if sizes.get(shard.path) != shard.bytes), None
            )
            if record.plan != digest or record.unit != unit:
                faults.append(f"{_record_path(unit)} is of another build")
            elif wrong is not None:
                faults.append(f"{wrong} is missing or has another size than {_record_path(unit)} states")
            else:
                done[unit] = record
    return done, faults
