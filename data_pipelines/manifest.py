"""The manifest of a shard set: what each shard must hold, so that nothing broken or missing goes
unnoticed."""

from __future__ import annotations

import hashlib
import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_serializer

from segclip.data_pipelines.errors import REPAIR, BadShard
from segclip.data_pipelines.storage.store import Store, read_before_fork
from segclip.data_pipelines.storage.urls import normalise_url
from segclip.data_pipelines.superpixels import SuperpixelMethod
from segclip.data_pipelines.tar import read_members

__all__ = [
    "MANIFEST",
    "SHARD_PATH",
    "Manifest",
    "ShardEntry",
    "check_shard",
    "describe",
    "parse_manifest",
    "read_manifest",
]

MANIFEST = "manifest.json"
SHARD_PATH = r"^[A-Za-z0-9_+=,@~-][A-Za-z0-9_.+=,@~/-]*\.tar$"


class ShardEntry(BaseModel):
    """One shard: path below the manifest's folder, size in bytes, number of samples, SHA-256 of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(pattern=SHARD_PATH)
    bytes: int = Field(ge=0)
    count: int = Field(ge=1)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Manifest(BaseModel):
    """``manifest.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["segclip-shards"] = "segclip-shards"
    version: Literal[1] = 1
    superpixels: SuperpixelMethod | None = Field(
        default=None, description="Method of the stored maps; none are stored if null."
    )
    source: dict[str, Any] = Field(
        default_factory=dict, description="What the set was made from, for people."
    )
    shards: tuple[ShardEntry, ...]

    @field_serializer("superpixels")
    def _only_what_counts(self, method: SuperpixelMethod | None) -> dict[str, Any] | None:
        return None if method is None else method.parameters()

    @property
    def samples(self) -> int:
        return sum(shard.count for shard in self.shards)

    def to_json(self) -> bytes:
        return (self.model_dump_json(indent=1) + "\n").encode()


def describe(path: str, content: bytes, count: int) -> ShardEntry:
    """The manifest's entry for a shard."""
    return ShardEntry(path=path, bytes=len(content), count=count, sha256=hashlib.sha256(content).hexdigest())


def parse_manifest(content: bytes, where: str) -> Manifest:
    """A manifest from its bytes.

    Raises:
        ValueError: no manifest, one of a newer version, or one that names no shards or one shard twice.
    """
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "document"
        known = Manifest.model_fields["version"].default
        if place == "version" and type(first["input"]) is int and first["input"] > known:
            raise ValueError(
                f"{where}: version = {first['input']}, and this version of segclip knows manifests up to {known}: "
                "update segclip"
            ) from error
        raise ValueError(f"{where} is not a valid manifest: {place}: {first['msg']}") from error
    if not manifest.shards:
        raise ValueError(f"{where} names zero shards: build a shard set first (segclip-shards scenes ...)")
    paths = [shard.path for shard in manifest.shards]
    if len(set(paths)) != len(paths) or any(".." in path.split("/") for path in paths):
        raise ValueError(f"{where} names a shard twice or outside its folder: write the manifest again")
    return manifest


def read_manifest(source: str | Store, *, allow_pipe: bool = False) -> Manifest:
    """The manifest of the shard set at a URL or in a store.

    Given a URL it is read so that this process may still fork workers (see ``store.read_before_fork``).
    """
    if isinstance(source, Store):
        return parse_manifest(bytes(source.get(MANIFEST)), f"{source.url}/{MANIFEST}")
    url = normalise_url(source, allow_pipe=allow_pipe)
    return parse_manifest(read_before_fork(url, MANIFEST, allow_pipe=allow_pipe), f"{url}/{MANIFEST}")


def check_shard(
    entry: ShardEntry, content: bytes | bytearray | memoryview, url: str, *, checksum: bool = True
) -> None:
    """Raise ``BadShard`` (a ``ValueError``) unless the bytes of a shard are those the manifest states."""
    if len(content) != entry.bytes:
        raise BadShard(
            "length",
            f"shard {url}/{entry.path} has {len(content)} bytes, the manifest states {entry.bytes}: {REPAIR}",
        )
    if checksum and hashlib.sha256(content).hexdigest() != entry.sha256:
        raise BadShard(
            "checksum",
            f"the content of shard {url}/{entry.path} does not match the manifest (SHA-256{_first_fault(content)}): "
            f"{REPAIR}",
        )


def _first_fault(content: bytes | bytearray | memoryview) -> str:
    """Where a shard breaks, as far as its structure tells: what is changed within a picture only its sum shows."""
    try:
        for _ in read_members(content, ""):
            pass
    except ValueError as error:
        place = re.search(r"at byte \d+", str(error))
        return f"; its first fault is {place[0]}" if place else ""
    return ""
