"""Tars as a source: those of img2dataset and the like, whose keys are made anew, and shards, which keep theirs."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from braceexpand import braceexpand

from segclip.data_pipelines.building.source import Raw, Rejected, Source, digest_of, fetched
from segclip.data_pipelines.manifest import MANIFEST, SHARD_PATH, read_manifest
from segclip.data_pipelines.pictures import PICTURE_EXTENSIONS, picture_extension
from segclip.data_pipelines.shard import Shard, open_shard
from segclip.data_pipelines.storage.store import open_store
from segclip.data_pipelines.storage.urls import local_path, normalise_url
from segclip.data_pipelines.tar import SampleIndex, read_members, split_name

__all__ = ["expanded", "open_shards", "open_tars", "tars_in"]


def expanded(pattern: str) -> list[str]:
    """URLs of the tars that a pattern with braces names."""
    try:
        urls = [normalise_url(each) for each in braceexpand(pattern)]
    except ValueError as error:
        raise ValueError(f"{pattern!r} cannot be read: {error}") from error
    for url in urls:
        path = local_path(url)
        if path is not None and not path.is_file():
            raise ValueError(
                f"{path} does not exist: check {pattern!r}; a range with gaps is written {{{{00..03}},{{05..09}}}}.tar"
            )
    return urls


def tars_in(url: str) -> list[str]:
    """URLs of the shards that the manifest of a folder names; without one, of the tars at its top."""
    store = open_store(url)
    folder = local_path(store.url)
    # Of a local folder its top alone: below it may lie a million pictures, whose names the store may not take.
    held = [entry.path for entry in store.list()] if folder is None else sorted(os.listdir(folder))
    if MANIFEST in held:
        paths = [shard.path for shard in read_manifest(store).shards]
    else:
        paths = [path for path in held if path.endswith(".tar") and "/" not in path]
    return [f"{store.url}/{path}" for path in paths]


def open_tars(tars: list[str], per_shard: int) -> Source:
    """The samples of some tars, given by their URLs."""
    twice = len(tars) - len(set(tars))
    if twice:
        raise ValueError(f"{twice} tars are named twice: name each once")
    together = _tars_together(tars, per_shard)
    units = [
        TarsUnit(number, start, tuple(tars[start : start + together]))
        for number, start in enumerate(range(0, len(tars), together))
    ]
    return Source(units, {**_of_tars(tars), "tars_together": together})


def _of_tars(tars: list[str]) -> dict[str, Any]:
    return {"kind": "tars", "tars": len(tars), "first": tars[0], "last": tars[-1], "sha256": digest_of(tars)}


def _tars_together(tars: list[str], per_shard: int) -> int:
    """How many tars make a shard of the size wanted, judged by the first that can be read."""
    for url in tars:
        tar = _open_tar(url)
        if not isinstance(tar, Rejected):
            return max(1, per_shard // max(1, len(tar.samples)))
    return 1


def open_shards(url: str) -> Source:
    """The shards of a set, or the tars of a folder, each a unit that keeps its name, keys and members.

    Raises:
        ValueError: there are none.
    """
    store = open_store(url)
    held = {entry.path for entry in store.list()}
    if MANIFEST in held:
        manifest = read_manifest(store)
        units = [ShardUnit(f"{store.url}/{shard.path}", shard.path, shard.count) for shard in manifest.shards]
        digest, source = digest_of([(shard.path, shard.sha256) for shard in manifest.shards]), manifest.source
    else:
        paths = sorted(path for path in held if path.endswith(".tar"))
        for path in paths:
            if not re.match(SHARD_PATH, path):
                raise ValueError(
                    f"the shard name {path!r} in {store.url} is not allowed: letters, digits and _.+=,@~- only"
                )
        units = [ShardUnit(f"{store.url}/{path}", path) for path in paths]
        digest, source = digest_of(paths), {}
    if not units:
        raise ValueError(f"{store.url} holds neither a {MANIFEST} nor tars: check the URL")
    return Source(units, {"kind": "shards", "shards": len(units), "sha256": digest, "made_from": source})


@dataclass(frozen=True)
class TarsUnit:
    """Some tars of samples, whose keys are made anew: ``TAR-NUMBER``, both counted over the whole source.

    A tar that is cut, corrupt or holds an unsafe key is rejected as a whole, as the training reader would.
    """

    number: int
    first: int
    urls: tuple[str, ...]
    records: int | None = None

    @property
    def stem(self) -> str:
        return f"{self.number:05d}"

    def read(self) -> tuple[int, Iterator[Raw | Rejected]]:
        tars = [_open_tar(url) for url in self.urls]
        return sum(1 if isinstance(tar, Rejected) else len(tar.samples) for tar in tars), self._records(tars)

    def _records(self, tars: Sequence[_Tar | Rejected]) -> Iterator[Raw | Rejected]:
        for number, tar in enumerate(tars, start=self.first):
            if isinstance(tar, Rejected):
                yield tar
                continue
            for index, sample in enumerate(tar.samples):
                origin = f"{tar.name}: {sample.key}"
                found = picture_extension(sample.members)
                if found is None or "txt" not in sample.members:
                    yield _incomplete(origin, sample, found)
                    continue
                # img2dataset's own record of the sample is kept; its other members are of no use here.
                members = {"json": bytes(tar.member(sample, "json"))} if "json" in sample.members else {}
                members.setdefault("json", json.dumps({"key": sample.key}).encode())
                left_out = tar.unread(sample) + len(sample.members.keys() - {found, "txt", "json"})
                yield Raw(
                    f"{number:05d}-{index:06d}",
                    origin,
                    origin,
                    bytes(tar.member(sample, found)),
                    None,
                    bytes(tar.member(sample, "txt")),
                    members,
                    left_out,
                )


@dataclass(frozen=True)
class ShardUnit:
    """One shard, whose name, keys and members are kept."""

    url: str
    path: str
    records: int | None = None

    @property
    def stem(self) -> str:
        return self.path.removesuffix(".tar")

    def read(self) -> tuple[int, Iterator[Raw | Rejected]]:
        tar = _open_tar(self.url)
        if isinstance(tar, Rejected):
            return 1, iter([tar])
        return len(tar.samples), self._records(tar)

    def _records(self, tar: _Tar) -> Iterator[Raw | Rejected]:
        for sample in tar.samples:
            origin = f"{self.path}: {sample.key}"
            found = picture_extension(sample.members)
            if found is None:
                yield _incomplete(origin, sample, found)
                continue
            members = {name: bytes(tar.member(sample, name)) for name in sample.members if name != found}
            picture = bytes(tar.member(sample, found))
            yield Raw(sample.key, origin, origin, picture, found, None, members, tar.unread(sample))


@dataclass(frozen=True)
class _Tar(Shard):
    names: Counter[str]  # how many members each key has, pickles included

    def unread(self, sample: SampleIndex) -> int:
        """How many members of a sample are passed over because they could carry code."""
        return self.names[sample.key] - len(sample.members)


def _open_tar(url: str) -> _Tar | Rejected:
    data = fetched(url)
    try:
        shard = open_shard(url, data)
        names = Counter(split_name(member.name)[0] for member in read_members(data, url))
    except ValueError as error:
        return Rejected(url, "broken tar", str(error))
    return _Tar(shard.name, shard.content, shard.samples, names)


def _incomplete(origin: str, sample: SampleIndex, picture: str | None) -> Rejected:
    held = ", ".join(sample.members) or "none that may be read"
    if picture is None:
        return Rejected(
            origin, "no picture", f"its members are {held}: needs one of {', '.join(PICTURE_EXTENSIONS)}"
        )
    return Rejected(origin, "no caption", f"its members are {held}: needs txt")
