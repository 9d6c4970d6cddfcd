"""Pictures in a folder as a source, captioned by a table or by a text file beside each."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from segclip.data_pipelines.building.source import (
    Raw,
    RefusedError,
    Rejected,
    Source,
    digest_of,
    fetched,
    opened,
)
from segclip.data_pipelines.building.tables import Row, TableOptions, read_rows
from segclip.data_pipelines.errors import StoreError
from segclip.data_pipelines.pictures import PICTURE_EXTENSIONS
from segclip.data_pipelines.storage.store import open_store
from segclip.data_pipelines.storage.urls import local_path, normalise_url

__all__ = ["open_folder", "open_table"]

_PICTURES = frozenset("." + extension for extension in PICTURE_EXTENSIONS)
# Pictures that are listed, so that a report names them, although training does not read them.
_OTHER_PICTURES = frozenset({".gif", ".bmp", ".tif", ".tiff", ".heic", ".avif", ".jp2", ".jxl"})
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# What no store takes in a key; half of a surrogate pair comes from JSON.
_NO_KEY = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
LONGEST_KEY = 1024  # bytes, of S3
# A file of more bytes is no photograph, and would fill the memory.
MOST_BYTES = 256 * 2**20


def open_table(images: str, captions: str, table: TableOptions, per_shard: int) -> Source:
    """The pictures of a folder that a table names, with its captions."""
    url, file = normalise_url(images), normalise_url(captions)
    opened(url)  # a folder that is not there is an error now, not for every row
    rows = read_rows(bytes(fetched(file)), PurePosixPath(file).name, table)
    return _of_rows(rows, url, per_shard, {"kind": "table", "table": PurePosixPath(file).name})


def open_folder(images: str, per_shard: int) -> Source:
    """All pictures below a folder, with the text files beside them."""
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
    description = {**description, "pictures": images, "rows": len(rows), "sha256": digest_of(rows)}
    return Source(units, description)


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
            except RefusedError as error:
                yield Rejected(origin, error.cause, str(error))
                continue
            members = {"json": json.dumps({"file": path}).encode()}
            yield Raw(f"{row.number:09d}", origin, path, before[1], None, text, members)


def _inside(name: str, images: str) -> str:
    """The path of a table's file below the folder of pictures."""
    if _URL.match(name):
        raise RefusedError(
            "picture is a URL",
            f"{name!r} is not downloaded: do that first, such as with img2dataset, and build from what it wrote",
        )
    folder = local_path(images)
    path = PurePosixPath(name)
    if path.is_absolute() and folder is not None and path.is_relative_to(folder):
        path = path.relative_to(folder)
    parts = os.path.normpath(path).split("/")
    if path.is_absolute() or parts[0] in ("..", "."):
        raise RefusedError("path outside the folder", f"{name!r} is no path below {images}")
    return "/".join(parts)


def _read_file(images: str, path: str, what: str) -> bytes:
    """The content of a file.

    Raises:
        RefusedError: it is not there, is no plain file, or may not be read.
        ValueError, OSError: the store or the disk fails, which says nothing about the file.
    """
    folder = local_path(images)
    if folder is None:
        if _NO_KEY.search(path) or len(path.encode()) > LONGEST_KEY:
            raise RefusedError(
                "path not allowed", f"{path[:100]!r} is too long or holds characters that no key has"
            )
        try:
            return bytes(opened(images).get(path))
        except StoreError as error:
            if error.cause == "missing":
                raise RefusedError(f"{what} missing", str(error)) from error
            raise
    file = folder / path
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise RefusedError(f"{what} is no file", f"{file} is a folder, a pipe or a device")
        if status.st_size > MOST_BYTES:
            raise RefusedError(
                f"{what} file too large", f"{file} has {status.st_size} bytes, more than {MOST_BYTES}"
            )
        return file.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RefusedError(f"{what} missing", f"{file} does not exist") from error
    except PermissionError as error:
        raise RefusedError(
            f"{what} not readable", f"{file} may not be read: check its permissions"
        ) from error
    except ValueError as error:  # a zero byte, half of a surrogate pair
        raise RefusedError("path not allowed", f"{path!r} is no name of a file: {error}") from error
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise RefusedError(f"{what} missing", f"{file} does not exist: {error.strerror}") from error
        raise


def _text_beside(images: str, path: str) -> bytes:
    return _read_file(images, str(PurePosixPath(path).with_suffix(".txt")), "caption")
