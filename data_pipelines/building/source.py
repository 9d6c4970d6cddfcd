"""What a shard set is built from: a source, cut into units, of samples as they were found.

Each unit is read by one process on its own. What it gives depends on nothing but the source.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

from segclip.data_pipelines.storage.buffers import read_file
from segclip.data_pipelines.storage.store import Store, open_store
from segclip.data_pipelines.storage.urls import local_path

__all__ = ["Raw", "RefusedError", "Rejected", "Source", "Unit", "digest_of", "fetched", "opened"]


@dataclass(frozen=True, slots=True)
class Raw:
    """A captioned picture as it was found.

    Attributes:
        key: its key in the new set.
        origin: what a report calls it.
        file: the file it lies in; samples of one file are captions of the same picture, not duplicates of it.
        picture: the encoded picture.
        extension: what its member is called, such as ``jpg``; None calls it what it is.
        caption: its caption; None leaves the member ``txt`` of ``members`` as it is.
        members: further members to take along.
        left_out: how many members of the sample are not taken along.
    """

    key: str
    origin: str
    file: str
    picture: bytes
    extension: str | None
    caption: str | bytes | None
    members: Mapping[str, bytes] = field(default_factory=dict)
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class Rejected:
    """Something that does not get into the set: what it is called, the kind of fault, and the fault itself."""

    origin: str
    cause: str
    detail: str


class RefusedError(Exception):
    """Why a picture or a caption does not get into the set, with the kind of fault; the build goes on without it."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(detail)
        self.cause = cause


class Unit(Protocol):
    """A part of a source."""

    @property
    def stem(self) -> str:
        """What its shards are called, without ``.tar``."""

    @property
    def records(self) -> int | None:
        """How many records it has, None where only reading it would tell."""

    def read(self) -> tuple[int, Iterator[Raw | Rejected]]:
        """How many records it has, and these; ``ValueError`` or ``OSError`` if they cannot be had now."""


@dataclass(frozen=True)
class Source:
    """A source of captioned pictures.

    Attributes:
        units: its parts.
        description: what it is, for the plan and the manifest; equal descriptions mean equal samples.
    """

    units: Sequence[Unit]
    description: dict[str, Any]


@lru_cache(maxsize=8)
def opened(url: str) -> Store:
    """The store at a URL, opened once in each process."""
    return open_store(url)


def fetched(url: str) -> memoryview:
    """An object by its whole URL."""
    folder, _, name = url.rpartition("/")
    path = local_path(url)
    if path is not None:
        if not path.is_file():
            raise ValueError(f"{path} does not exist: check the path")
        return read_file(path)
    return opened(folder).get(name)


def digest_of(items: Sequence[Any]) -> str:
    """SHA-256 of some values that JSON can write."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps(item).encode())
    return digest.hexdigest()
