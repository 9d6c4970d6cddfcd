"""The small file of a checkpoint that needs neither engine nor ranks: where the run stands.

Its format has a number. 1 had none: fields came one after the other, so that data, data_counts, bad_shards and best may
be missing there, and stand for nothing known and nothing counted. 2 holds all of them.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

__all__ = ["FORMAT", "STATE", "Best", "TrainState", "read_state"]

STATE = "state.json"
FORMAT = 2
# Fields that format 1 came to have while it was in use.
LATER: dict[str, Any] = {"data": None, "data_counts": {}, "bad_shards": [], "best": None}


@dataclass(frozen=True)
class Best:
    """The step of the best score on the images that are scored while training, and its mean IoU."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    step: int
    miou: float


def _check_data(data: dict[str, Any] | None) -> dict[str, Any] | None:
    """Raise ``ValueError`` for what ``describe_data`` does not write."""
    sets = [] if data is None else data.get("sets", [data])
    if not isinstance(sets, list) or not all(isinstance(each, dict) for each in sets):
        raise ValueError(f"sets must be a list of shard sets, not {sets!r}")
    for each in sets:
        for name, kind in (("name", str), ("samples", int), ("manifest_sha256", str)):
            if not isinstance(each.get(name), kind):
                raise ValueError(
                    f"{name} of a shard set must be of type {kind.__name__}, not {each.get(name)!r}"
                )
    return data


@dataclass(frozen=True)
class TrainState:
    """What continues a run besides the shards that DeepSpeed writes.

    Randomness and the data order are functions of (seed, position), so ``step`` is the whole data position: the next
    sample is number ``step * global_batch`` of the stream.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    step: Annotated[int, Field(ge=0)]
    seed: Annotated[int, Field(ge=0)]
    global_batch: Annotated[int, Field(gt=0)]
    mlflow_run_id: str | None
    git_commit: str | None
    data: Annotated[dict[str, Any] | None, AfterValidator(_check_data)] = None
    """What the run reads; see ``segclip.trainer.export.describe_data``."""
    data_counts: dict[str, int] = field(default_factory=dict)
    """What happened to the data so far; see ``segclip.trainer.data_counts``."""
    bad_shards: list[int] = field(default_factory=list)
    """Numbers of the shards found bad so far."""
    best: Best | None = None
    """Of the scores so far, this step's included; its checkpoint is kept."""
    format: int = FORMAT
    """Of the file."""


def read_state(folder: Path) -> TrainState:
    """State of a published checkpoint, of this format or an older one.

    Raises:
        ValueError: the file is no JSON, of a newer format, or has a field that is missing, unknown or of the wrong
            type; names file and field.
    """
    path = folder / STATE
    try:
        fields = json.loads(path.read_bytes())
    except ValueError as error:  # no JSON, or no text at all
        raise ValueError(f"{path} is not readable: {error}; {_remedy(folder)}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path} must hold an object, not {type(fields).__name__}; {_remedy(folder)}")
    fields = _migrate(fields, path)
    missing = [each.name for each in dataclasses.fields(TrainState) if each.name not in fields]
    if missing:
        raise ValueError(f"{path}: field {missing[0]!r} is missing; {_remedy(folder)}")
    try:
        # As JSON, in which a list stays a list, and strictly: "3" and true are no numbers.
        return TypeAdapter(TrainState).validate_json(json.dumps(fields), strict=True)
    except ValidationError as error:
        told = "; ".join(_explain(item) for item in error.errors())
        raise ValueError(f"{path}: {told}; {_remedy(folder)}") from error


def _migrate(fields: dict[str, Any], path: Path) -> dict[str, Any]:
    """Fields of the newest format."""
    number = fields.get("format", 1)
    if type(number) is not int or number < 1:
        raise ValueError(f"{path}: format = {number!r} is no format; {_remedy(path.parent)}")
    if number > FORMAT:
        raise ValueError(
            f"{path}: format = {number}, and this version of segclip knows formats up to {FORMAT}: update segclip"
        )
    if number == 1:
        return {**LATER, **fields, "format": FORMAT}
    return fields


def _explain(item: Any) -> str:
    name = ".".join(str(part) for part in item["loc"])
    if item["type"] == "missing":
        return f"field {name!r} is missing"
    if item["type"] == "unexpected_keyword_argument":
        return f"unknown field {name!r}"
    return f"{name} = {item['input']!r}: {item['msg'].removeprefix('Value error, ')}"


def _remedy(folder: Path) -> str:
    return f"it was damaged or changed by hand: delete the folder {folder} to resume from the one before"
