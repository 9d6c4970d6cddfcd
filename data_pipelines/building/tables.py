"""Tables of captions: CSV, TSV, JSON lines, Parquet, and the JSON of Karpathy's splits of COCO.

A row that cannot be read keeps its place and says why, so that it is counted; a table that cannot be read is an error.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from segclip.console import nearest

__all__ = ["CAPTION_COLUMNS", "KARPATHY_SPLITS", "PICTURE_COLUMNS", "Row", "TableOptions", "read_rows"]

PICTURE_COLUMNS = (
    *("image", "file", "filename", "file_name", "filepath", "file_path", "path", "image_path", "local_path"),
    *("img", "key"),
)
"""Names that are taken for the column of the picture's path, in this order, where none is given."""
CAPTION_COLUMNS = ("caption", "text", "title", "description", "sentence", "raw")
"""Names that are taken for the column of the caption."""
KARPATHY_SPLITS = ("train", "restval")
"""Splits of COCO that training takes."""
# A caption with a web page in it is longer than the csv module reads by default.
_LONGEST_FIELD = 16 * 2**20


class Row(NamedTuple):
    """A picture's path as the table has it and its caption; or, in ``fault``, why the row has none.

    ``number`` counts the captions of a table from 0. A caption of None lies in a text file beside the picture.
    """

    number: int
    file: str
    caption: str | None
    fault: str = ""


@dataclass(frozen=True)
class TableOptions:
    """How a table is read.

    Attributes:
        picture_column, caption_column: columns to take; None takes the first usual name that is there. A value of
            the caption's column that is a list gives a row for each of its texts.
        splits: splits of a Karpathy JSON.
    """

    picture_column: str | None = None
    caption_column: str | None = None
    splits: Sequence[str] = KARPATHY_SPLITS


def read_rows(content: bytes, name: str, options: TableOptions) -> list[Row]:
    """The rows of a table.

    Args:
        content: the whole file.
        name: its name, whose ending says what it is: ``.csv``, ``.tsv``, ``.jsonl``, ``.parquet`` or ``.json``.
        options: columns and splits to take.

    Raises:
        ValueError: a kind of file that is not known, columns or splits that are not there, no rows.
    """
    ending = PurePosixPath(name).suffix.lower()
    if ending == ".json":
        found: Iterable[tuple[str, str] | str] = _karpathy(content, name, options.splits)
    elif ending in _READERS:
        records = _READERS[ending](content, name)
        found = _pairs(records, name, options)
    else:
        raise ValueError(
            f"the table {name} ends with {ending!r}: captions are read from .csv, .tsv, .jsonl, .parquet or, in "
            "Karpathy's form, .json"
        )
    rows = [
        Row(number, "", None, each) if isinstance(each, str) else Row(number, *each)
        for number, each in enumerate(found)
    ]
    if not rows:
        raise ValueError(f"the table {name} has no rows: give one that names pictures and their captions")
    return rows


def _text(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"the table {name} is not UTF-8 (byte {error.start}): convert it, such as with iconv"
        ) from error


# Each reader gives the names of the columns first, then a mapping for each row, or what is wrong with it.
_Records = Iterator[Any]


def _csv(content: bytes, name: str) -> _Records:
    reader = csv.reader(io.StringIO(_text(content, name), newline=""), strict=True)
    yield from _separated(reader, name)


def _tsv(content: bytes, name: str) -> _Records:
    # Web captions hold lone quotes, which must not swallow the lines up to the next one: a quoted field is unpacked
    # only where both quotes stand in it.
    lines = io.StringIO(_text(content, name), newline="")
    reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    yield from _separated(([_unquoted(field) for field in line] for line in reader), name)


def _unquoted(field: str) -> str:
    if len(field) >= 2 and field[0] == field[-1] == '"':
        return field[1:-1].replace('""', '"')
    return field


def _separated(lines: Iterator[list[str]], name: str) -> _Records:
    before = csv.field_size_limit(_LONGEST_FIELD)
    try:
        columns = next(lines, [])
        yield columns
        for line in lines:
            if not line:
                continue
            if len(line) != len(columns):
                yield f"it has {len(line)} fields, the header has {len(columns)}"
            else:
                yield dict(zip(columns, line, strict=True))
    except csv.Error as error:
        raise ValueError(f"the table {name} cannot be read: {error}; mend its quotes") from error
    finally:
        csv.field_size_limit(before)


def _jsonl(content: bytes, name: str) -> _Records:
    records: list[dict[str, Any] | str] = []
    columns: dict[str, None] = {}
    for line in _text(content, name).split("\n"):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            records.append(f"its line is no JSON: {error}")
            continue
        if isinstance(record, dict):
            columns.update(dict.fromkeys(record))
            records.append(record)
        else:
            records.append(f"its line is no JSON object but {line.strip()[:40]!r}")
    yield list(columns)
    yield from records


def _parquet(content: bytes, name: str) -> _Records:
    import pyarrow.parquet  # the command line needs this file's names for its --help

    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(content))
        yield list(file.schema_arrow.names)
        for batch in file.iter_batches():
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"the table {name} is no Parquet that can be read: {error}") from error


_READERS = {".csv": _csv, ".tsv": _tsv, ".jsonl": _jsonl, ".parquet": _parquet}


def _pairs(records: _Records, name: str, options: TableOptions) -> Iterator[tuple[str, str] | str]:
    """(path, caption) of each row, or what is wrong with it."""
    columns = next(records)
    picture = _column(columns, name, "picture", options.picture_column, PICTURE_COLUMNS)
    caption = _column(columns, name, "caption", options.caption_column, CAPTION_COLUMNS)
    for record in records:
        if isinstance(record, str):
            yield record
            continue
        file, texts = record.get(picture), record.get(caption)
        if not isinstance(file, str) or not file:
            yield f"its column {picture!r} holds no path but {file!r}"
            continue
        for text in texts if isinstance(texts, list) and texts else [texts]:
            if text is None or isinstance(text, str):
                yield file, text or ""
            else:
                yield f"its column {caption!r} holds no text but {text!r}"[:200]


def _column(columns: Sequence[str], name: str, what: str, given: str | None, usual: Sequence[str]) -> str:
    if given is not None:
        if given in columns:
            return given
        problem = f"no column {given!r}{nearest(given, columns)}"
    else:
        for each in usual:
            if each in columns:
                return each
        problem = f"no column of a usual name for the {what} ({', '.join(usual)})"
        if what == "picture" and any("url" in each.lower() for each in columns):
            problem += ", but URLs: download the pictures first, such as with img2dataset, and build from what it wrote"
    held = ", ".join(repr(each) for each in columns[:20]) or "none"
    raise ValueError(f"the table {name} has {problem}; its columns are {held}: name one with --{what}-column")


def _karpathy(content: bytes, name: str, splits: Sequence[str]) -> Iterator[tuple[str, str] | str]:
    """One row for each sentence: the original trains on each as a sample of its own."""
    try:
        document = json.loads(_text(content, name))
    except ValueError as error:
        raise ValueError(f"the table {name} is no JSON ({error}): JSON lines end with .jsonl") from error
    images = document.get("images") if isinstance(document, dict) else None
    if not isinstance(images, list):
        raise ValueError(
            f"the table {name} has no list 'images': a .json holds Karpathy's splits (dataset_coco.json); other "
            "captions go into .csv, .tsv, .jsonl or .parquet"
        )
    held = {str(image.get("split")) for image in images if isinstance(image, dict)}
    unknown = [split for split in splits if split not in held]
    # Flickr30k has no 'restval': the default asks for what there is of it.
    if unknown and (tuple(splits) != KARPATHY_SPLITS or len(unknown) == len(splits)):
        raise ValueError(
            f"the table {name} has no split {unknown[0]!r}: it has {', '.join(sorted(held)) or 'none'}; choose with "
            "--splits"
        )
    for image in images:
        if not isinstance(image, dict):
            yield f"its entry is no object but {image!r}"[:200]
            continue
        if image.get("split") not in splits:
            continue
        file, sentences = image.get("filename"), image.get("sentences")
        if not isinstance(file, str) or not isinstance(sentences, list):
            yield f"its entry has no 'filename' or no 'sentences' but {', '.join(map(str, image))}"
            continue
        path = f"{image['filepath']}/{file}" if image.get("filepath") else file
        for sentence in sentences:
            raw = sentence.get("raw") if isinstance(sentence, dict) else None
            yield (path, raw) if isinstance(raw, str) else f"a sentence of {path} has no text 'raw'"
