from __future__ import annotations

import io
import json
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from segclip.data_pipelines.building.tables import Row, TableOptions, read_rows

CAPTIONS = ["a red circle", 'a "round", big\nstar', ""]
ROWS = [Row(n, f"p/{n}.jpg", caption) for n, caption in enumerate(CAPTIONS)]
RECORDS = [{"width": 3, "path": row.file, "text": row.caption} for row in ROWS]


def read(content: bytes, name: str, **options: Any) -> list[Row]:
    return read_rows(content, name, TableOptions(**options))


def parquet(table: dict[str, object]) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(table), buffer)
    return buffer.getvalue()


def test_csv() -> None:
    text = 'path,text,n\np/0.jpg,a red circle,1\np/1.jpg,"a ""round"", big\nstar",2\n\np/2.jpg,,3\n'
    assert read(text.encode(), "t.csv") == ROWS
    assert read(b"\xef\xbb\xbf" + text.replace("2\n\n", "2\r\n").encode(), "T.CSV") == ROWS


def test_tsv_with_lone_quotes_loses_no_line() -> None:
    text = 'caption\tfile\n"a ""big"" cat"\ta.jpg\n"a cat\tb.jpg\na 5" cat\tc.jpg\n'
    rows = [("a.jpg", 'a "big" cat'), ("b.jpg", '"a cat'), ("c.jpg", 'a 5" cat')]
    assert [row[1:3] for row in read(text.encode(), "t.tsv")] == rows


def test_jsonl_and_parquet() -> None:
    lines = "\n".join(json.dumps(record) for record in RECORDS) + "\n\n"
    assert read(lines.encode(), "t.jsonl") == ROWS
    columns = {name: [record[name] for record in RECORDS] for name in RECORDS[0]}
    assert read(parquet(columns), "t.parquet") == ROWS


def test_a_list_of_captions_gives_a_row_each() -> None:
    found = read(parquet({"image": ["a.jpg", "b.jpg"], "caption": [["x", "y"], []]}), "t.parquet")
    assert found[:2] == [Row(0, "a.jpg", "x"), Row(1, "a.jpg", "y")]
    assert found[2].fault == "its column 'caption' holds no text but []"


def test_columns_may_be_named() -> None:
    text = b"image,a,b\nx.jpg,one,two\n"
    assert read(text, "t.csv", picture_column="a", caption_column="b") == [Row(0, "one", "two")]


def test_rows_that_cannot_be_read_keep_their_place() -> None:
    found = read(b"image,caption\na.jpg,x\nb.jpg\nc.jpg,y,z\n,w\nd.jpg,v\n", "t.csv")
    assert [row.number for row in found] == [0, 1, 2, 3, 4]
    assert [row.fault for row in found] == [
        "",
        "it has 1 fields, the header has 2",
        "it has 3 fields, the header has 2",
        "its column 'image' holds no path but ''",
        "",
    ]
    lines = b'{"image": "a.jpg", "caption": 5}\n{"image": \n[1]\n"its line"\n{"image": 3, "caption": "x"}'
    faults = [row.fault for row in read(lines, "t.jsonl")]
    reasons = ["holds no text but 5", "is no JSON: ", "no JSON object but '[1]'", "but '\"its", "but 3"]
    for fault, expected in zip(faults, reasons, strict=True):
        assert expected in fault


KARPATHY = {
    "dataset": "coco",
    "images": [
        {
            "filepath": "val2014",
            "filename": "a.jpg",
            "split": "train",
            "sentences": [{"raw": "x"}, {"raw": "y"}],
        },
        {"filepath": "val2014", "filename": "b.jpg", "split": "test", "sentences": [{"raw": "z"}]},
        {"filename": "c.jpg", "split": "restval", "sentences": [{"raw": "w"}, {"tokens": []}]},
        {"filename": "d.jpg", "split": "train"},
    ],
}


def test_karpathy_gives_each_sentence_of_the_splits() -> None:
    content = json.dumps(KARPATHY).encode()
    found = read(content, "dataset_coco.json")
    assert found[:3] == [Row(0, "val2014/a.jpg", "x"), Row(1, "val2014/a.jpg", "y"), Row(2, "c.jpg", "w")]
    assert "a sentence of c.jpg has no text 'raw'" in found[3].fault
    assert "no 'sentences' but filename, split" in found[4].fault
    assert read(content, "x.json", splits=["test"]) == [Row(0, "val2014/b.jpg", "z")]
    with pytest.raises(ValueError, match="has no split 'val': it has restval, test, train"):
        read(content, "x.json", splits=["train", "val"])
    flickr = {"images": KARPATHY["images"][:1]}  # type: ignore[index]
    assert len(read(json.dumps(flickr).encode(), "x.json")) == 2


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b"", "t.csv", "no column of a usual name for the picture .*its columns are none"),
        (b"a,b\n", "t.csv", "its columns are 'a', 'b': name one with --picture-column"),
        (b"image,b\n", "t.csv", "name one with --caption-column"),
        (b"image,caption\n", "t.csv", "has no rows"),
        (b"image,caption\n\xff,x", "t.csv", r"is not UTF-8 \(byte 14\)"),
        (b'image,caption\na,"x\nb,y', "t.csv", "cannot be read: unexpected end of data; mend its quotes"),
        (b"\n", "t.jsonl", "its columns are none"),
        (b"PAR1", "t.parquet", "is no Parquet that can be read"),
        (b"{", "t.json", "is no JSON .*: JSON lines end with .jsonl"),
        (b"[]", "t.json", "has no list 'images'"),
        (b"", "t.xlsx", "ends with '.xlsx'"),
    ],
)
def test_tables_that_cannot_be_read_are_errors(content: bytes, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read(content, name)
    assert name in str(caught.value)


def test_a_misspelt_column_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no column 'captoin' \(did you mean 'caption'\?\)"):
        read(b"image,caption\na,b", "t.csv", caption_column="captoin")
