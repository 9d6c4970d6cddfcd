"""Where a shard set is built from: existing tars, a folder of pictures, pictures and a table of their captions.

A source is cut into units, each read by one process on its own. What a unit gives depends on nothing but the source.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Protocol
from urllib.parse import urlsplit

from braceexpand import braceexpand

from segclip.data_pipelines.buffers import read_file
from segclip.data_pipelines.manifest import MANIFEST, SHARD_PATH, read_manifest
from segclip.data_pipelines.pictures import PICTURE_EXTENSIONS
from segclip.data_pipelines.store import Store, local_path, normalise_url, open_store
from segclip.data_pipelines.tables import KARPATHY_SPLITS, Row, read_rows
from segclip.data_pipelines.tar import SampleIndex, group_samples, read_members

__all__ = [
    "Raw",
    "Rejected",
    "RowsUnit",
    "ShardUnit",
    "Source",
    "TableOptions",
    "TarsUnit",
    "Unit",
    "open_shards",
    "open_source",
    "opened",
]

_PICTURES = frozenset("." + extension for extension in PICTURE_EXTENSIONS)
# Pictures that are listed, so that a report names them, although training does not read them.
_OTHER_PICTURES = frozenset({".gif", ".bmp", ".tif", ".tiff", ".heic", ".avif", ".jp2", ".jxl"})
# A file of more bytes is no photograph, and would fill the memory.
MOST_BYTES = 256 * 2**20


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


@lru_cache(maxsize=8)
def opened(url: str) -> Store:
    """The store at a URL, opened once in each process."""
    return open_store(url)


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


@dataclass(frozen=True)
class TableOptions:
    """How a table of captions is read: see ``tables.read_rows``."""

    picture_column: str | None = None
    caption_column: str | None = None
    splits: Sequence[str] = KARPATHY_SPLITS


def open_source(
    sources: Sequence[str],
    *,
    captions: str | None = None,
    table: TableOptions = TableOptions(),
    per_shard: int,
) -> Source:
    """The source that some arguments name.

    Args:
        sources: tars (``SRC/{00000..00331}.tar``), folders of tars, or one folder of pictures.
        captions: table of the captions of a folder of pictures; None reads each from the ``.txt`` beside its picture.
        table: how to read it.
        per_shard: samples wanted in each shard.

    Raises:
        ValueError: nothing there, or things that do not go together.
    """
    if captions is not None:
        if len(sources) != 1:
            raise ValueError(
                f"--captions names the captions of one folder of pictures, not of {len(sources)}"
            )
        return _open_table(sources[0], captions, table, per_shard)
    tars: list[str] = []
    for each in sources:
        if each.endswith(".tar"):
            tars += _expanded(each)
        elif found := _tars_in(each):
            tars += found
        elif len(sources) == 1:
            return _open_folder(each, per_shard)
        else:
            raise ValueError(f"{each} holds no tars: give tars, folders of tars, or one folder of pictures")
    return _open_tars(tars, per_shard)


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
        digest, source = _digest([(shard.path, shard.sha256) for shard in manifest.shards]), manifest.source
    else:
        paths = sorted(path for path in held if path.endswith(".tar"))
        for path in paths:
            if not re.match(SHARD_PATH, path):
                raise ValueError(
                    f"the shard name {path!r} in {store.url} is not allowed: letters, digits and _.+=,@~- only"
                )
        units = [ShardUnit(f"{store.url}/{path}", path) for path in paths]
        digest, source = _digest(paths), {}
    if not units:
        raise ValueError(f"{store.url} holds neither a {MANIFEST} nor tars: check the URL")
    return Source(units, {"kind": "shards", "shards": len(units), "sha256": digest, "made_from": source})


def _expanded(pattern: str) -> list[str]:
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


def _tars_in(url: str) -> list[str]:
    """URLs of the shards that the manifest of a folder names; without one, of the tars at its top."""
    store = open_store(url)
    held = [entry.path for entry in store.list()]
    if MANIFEST in held:
        paths = [shard.path for shard in read_manifest(store).shards]
    else:
        paths = [path for path in held if path.endswith(".tar") and "/" not in path]
    return [f"{store.url}/{path}" for path in paths]


def _open_tars(tars: list[str], per_shard: int) -> Source:
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
    shown = [_public(tars[0]), _public(tars[-1])]
    return {"kind": "tars", "tars": len(tars), "first": shown[0], "last": shown[1], "sha256": _digest(tars)}


def _tars_together(tars: list[str], per_shard: int) -> int:
    """How many tars make a shard of the size wanted, judged by the first that can be read."""
    for url in tars:
        tar = _open_tar(url)
        if not isinstance(tar, Rejected):
            return max(1, per_shard // max(1, len(tar.samples)))
    return 1


def _open_table(images: str, captions: str, table: TableOptions, per_shard: int) -> Source:
    url, file = normalise_url(images), normalise_url(captions)
    opened(url)  # a folder that is not there is an error now, not for every row
    rows = read_rows(
        bytes(_fetch(file)),
        PurePosixPath(file).name,
        picture_column=table.picture_column,
        caption_column=table.caption_column,
        splits=table.splits,
    )
    return _of_rows(rows, url, per_shard, {"kind": "table", "table": PurePosixPath(file).name})


def _open_folder(images: str, per_shard: int) -> Source:
    url = normalise_url(images)
    folder = local_path(url)
    if folder is None:
        paths = [entry.path for entry in open_store(url).list()]
    else:
        paths = [
            (Path(root) / name).relative_to(folder).as_posix()
            for root, _, names in os.walk(folder)
            for name in names
        ]
    pictures = sorted(
        path for path in paths if PurePosixPath(path).suffix.lower() in _PICTURES | _OTHER_PICTURES
    )
    if not pictures:
        raise ValueError(
            f"{url} holds neither tars nor pictures: give SRC/{{00000..00331}}.tar, or a folder of pictures with "
            "--captions TABLE or a .txt beside each"
        )
    rows = [Row(number, path, None) for number, path in enumerate(pictures)]
    return _of_rows(rows, url, per_shard, {"kind": "folder"})


def _of_rows(rows: list[Row], images: str, per_shard: int, description: dict[str, Any]) -> Source:
    units = [
        RowsUnit(number, images, tuple(rows[start : start + per_shard]))
        for number, start in enumerate(range(0, len(rows), per_shard))
    ]
    description = {**description, "pictures": _public(images), "rows": len(rows), "sha256": _digest(rows)}
    return Source(units, description)


def _digest(items: Sequence[Any]) -> str:
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps(item).encode())
    return digest.hexdigest()


def _public(url: str) -> str:
    """A URL without a user's name and password."""
    user, at, _ = urlsplit(url).netloc.rpartition("@")
    return url.replace(user + at, "", 1) if at else url


@dataclass(frozen=True)
class RowsUnit:
    """Some rows of a table, or some pictures of a folder."""

    number: int
    images: str
    rows: tuple[Row, ...]

    @property
    def stem(self) -> str:
        return f"{self.number:05d}"

    @property
    def records(self) -> int:
        return len(self.rows)

    def read(self) -> tuple[int, Iterator[Raw | Rejected]]:
        return len(self.rows), self._records()

    def _records(self) -> Iterator[Raw | Rejected]:
        before: tuple[str, bytes] | None = None  # the captions of a picture mostly follow each other
        for row in self.rows:
            origin = f"{row.file} (row {row.number})" if row.file else f"row {row.number}"
            if row.fault:
                yield Rejected(origin, "bad row", row.fault)
                continue
            try:
                path = _inside(row.file, self.images)
                if before is None or before[0] != path:
                    before = (path, _read_file(self.images, path, "picture"))
                caption = row.caption
                text = caption if caption is not None else _text_beside(self.images, path)
            except _FileError as error:
                yield Rejected(origin, error.cause, str(error))
                continue
            members = {"json": json.dumps({"file": path}).encode()}
            yield Raw(f"{row.number:09d}", origin, path, before[1], None, text, members)


class _FileError(Exception):
    """A file that is not there or not to be read; the build goes on without it."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(detail)
        self.cause = cause


def _inside(name: str, images: str) -> str:
    """The path of a table's file below the folder of pictures."""
    folder = local_path(images)
    path = PurePosixPath(name)
    if path.is_absolute() and folder is not None and path.is_relative_to(folder):
        path = path.relative_to(folder)
    parts = os.path.normpath(path).split("/")
    if path.is_absolute() or parts[0] in ("..", ".") or "\0" in name:
        raise _FileError("path outside the folder", f"{name!r} is no path below {images}")
    return "/".join(parts)


def _read_file(images: str, path: str, what: str) -> bytes:
    """The content of a file.

    Raises:
        _FileError: it is not there, is no plain file, or may not be read.
        ValueError, OSError: the store or the disk fails, which says nothing about the file.
    """
    folder = local_path(images)
    if folder is None:
        try:
            return bytes(opened(images).get(path))
        except ValueError as error:
            if _is_missing(error):
                raise _FileError(f"{what} missing", str(error)) from error
            raise
    file = folder / path
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise _FileError(f"{what} is no file", f"{file} is a folder, a pipe or a device")
        if status.st_size > MOST_BYTES:
            raise _FileError(
                f"{what} file too large", f"{file} has {status.st_size} bytes, more than {MOST_BYTES}"
            )
        return file.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _FileError(f"{what} missing", f"{file} does not exist") from error
    except PermissionError as error:
        raise _FileError(f"{what} not readable", f"{file} may not be read: check its permissions") from error


def _text_beside(images: str, path: str) -> bytes:
    return _read_file(images, str(PurePosixPath(path).with_suffix(".txt")), "caption")


def _is_missing(error: ValueError) -> bool:
    return isinstance(error.__cause__, FileNotFoundError)


def _fetch(url: str) -> memoryview:
    """An object by its whole URL."""
    folder, _, name = url.rpartition("/")
    path = local_path(url)
    if path is not None:
        if not path.is_file():
            raise ValueError(f"{path} does not exist: check the path")
        return read_file(path)
    return opened(folder).get(name)


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
                origin = f"{tar.url}: {sample.key}"
                found = _picture_of(sample)
                if found is None or "txt" not in sample.members:
                    yield _incomplete(origin, sample, found)
                    continue
                # img2dataset's own record of the sample is kept; its other members are of no use here.
                members = {"json": tar.content(sample, "json")} if "json" in sample.members else {}
                members.setdefault("json", json.dumps({"key": sample.key}).encode())
                left_out = tar.unread(sample) + len(sample.members.keys() - {found, "txt", "json"})
                yield Raw(
                    f"{number:05d}-{index:06d}",
                    origin,
                    origin,
                    tar.content(sample, found),
                    None,
                    tar.content(sample, "txt"),
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
            found = _picture_of(sample)
            if found is None:
                yield _incomplete(origin, sample, found)
                continue
            members = {name: tar.content(sample, name) for name in sample.members if name != found}
            picture = tar.content(sample, found)
            yield Raw(sample.key, origin, origin, picture, found, None, members, tar.unread(sample))


@dataclass(frozen=True)
class _Tar:
    url: str
    data: memoryview
    samples: list[SampleIndex]
    names: Counter[str]  # how many members each key has, pickles included

    def content(self, sample: SampleIndex, extension: str) -> bytes:
        start, end = sample.members[extension]
        return bytes(self.data[start:end])

    def unread(self, sample: SampleIndex) -> int:
        """How many members of a sample are passed over because they could carry code."""
        return self.names[sample.key] - len(sample.members)


def _open_tar(url: str) -> _Tar | Rejected:
    data = _fetch(url)
    try:
        samples = group_samples(data, url)
        names = Counter(_key(member.name) for member in read_members(data, url))
    except ValueError as error:
        return Rejected(url, "broken tar", str(error))
    return _Tar(url, data, samples, names)


def _key(name: str) -> str:
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def _picture_of(sample: SampleIndex) -> str | None:
    return next((each for each in PICTURE_EXTENSIONS if each in sample.members), None)


def _incomplete(origin: str, sample: SampleIndex, picture: str | None) -> Rejected:
    held = ", ".join(sample.members) or "none that may be read"
    if picture is None:
        return Rejected(
            origin, "no picture", f"its members are {held}: needs one of {', '.join(PICTURE_EXTENSIONS)}"
        )
    return Rejected(origin, "no caption", f"its members are {held}: needs txt")
