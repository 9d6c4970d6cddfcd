from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from segclip.data_pipelines.building.open_source import open_source
from segclip.data_pipelines.building.source import Raw, Rejected
from tests.data_pipelines.building.source_records import flat, read, rejected
from tests.data_pipelines.faulty_server import faulty_server
from tests.data_pipelines.photos import write_photos


def test_a_folder_of_pictures_with_texts_beside(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "deep" / "er", 5)
    (tmp_path / "deep" / "er" / "p001.txt").unlink()
    (tmp_path / "a.GIF").write_bytes(b"GIF89a")
    source = open_source([str(tmp_path)], per_shard=2)
    assert [len(unit) for unit in read(source)] == [2, 2, 2]
    assert rejected(source) == [("a.GIF (row 0)", "caption missing"), ("p001.png (row 2)", "caption missing")]
    found = [record for unit in read(source) for record in unit if isinstance(record, Raw)]
    assert [record.key for record in found] == ["000000001", "000000003", "000000004", "000000005"]
    assert found[0].picture == photos[0][1]
    assert found[0].caption == photos[0][2].encode()
    assert json.loads(found[0].members["json"]) == {"file": "deep/er/p000.jpg"}


def test_a_table_names_pictures_in_a_folder_and_nowhere_else(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    write_photos(folder, 2)
    (tmp_path / "secret.jpg").write_bytes(b"x")
    (folder / "locked.jpg").write_bytes(b"x")
    (folder / "sub").mkdir()
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "pipe.jpg")
    with (folder / "large.jpg").open("wb") as file:
        file.truncate(2**40)
    names = [
        "p000.jpg",
        "./sub/../p001.png",
        str(folder / "p000.jpg"),
        "../secret.jpg",
        str(tmp_path / "secret.jpg"),
        f"{folder}/../secret.jpg",
        ".",
        "a\0.jpg",
        "none.jpg",
        "p000.jpg/x.jpg",
        "sub",
        "pipe.jpg",
        "large.jpg",
        "https://example.org/p000.jpg",
        "s3://bucket/p000.jpg",
        "\ud800.jpg",
        "a\nb.jpg",
        "x" * 300 + ".jpg",
        "x/" * 600 + ".jpg",
        "loop/a.jpg",
    ]
    table = tmp_path / "t.jsonl"
    table.write_text("\n".join(json.dumps({"image": name, "caption": "x"}) for name in names) + "\n[]")
    source = open_source([str(folder)], captions=str(table), per_shard=4)
    found = [record for unit in read(source) for record in unit]
    assert [record.file for record in found if isinstance(record, Raw)] == [
        "p000.jpg",
        "p001.png",
        "p000.jpg",
    ]
    causes = [record.cause for record in found if isinstance(record, Rejected)]
    assert causes == [
        *["path outside the folder"] * 4,
        "path not allowed",
        *["picture missing"] * 2,
        *["picture is no file"] * 2,
        "picture file too large",
        *["picture is a URL"] * 2,
        "path not allowed",
        *["picture missing"] * 4,
        "bad row",
    ]


def test_names_that_no_store_takes_are_reported_and_do_not_stop_the_build(tmp_path: Path) -> None:
    names = ["\ud800.jpg", "a\nb.jpg", "a\0.jpg", "x/" * 600 + "a.jpg", "sp ace/\u202fü#?%41.jpg"]
    lines = [json.dumps({"image": name, "caption": "x"}) for name in names]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    with faulty_server() as server:
        server.content["/p/sp%20ace/%E2%80%AF%C3%BC%23%3F%2541.jpg"] = b"picture"
        source = open_source([f"{server.url}/p"], captions=str(tmp_path / "t.jsonl"), per_shard=9)
        (records,) = read(source)
    assert [each.cause for each in records if isinstance(each, Rejected)] == ["path not allowed"] * 4
    assert [each.picture for each in records if isinstance(each, Raw)] == [b"picture"]


def test_a_file_whose_name_is_no_text_is_read(tmp_path: Path) -> None:
    photos = write_photos(tmp_path, 1)
    (tmp_path / photos[0][0]).rename(tmp_path / os.fsdecode(b"caf\xe9.jpg"))
    (tmp_path / photos[0][0]).with_suffix(".txt").rename(tmp_path / os.fsdecode(b"caf\xe9.txt"))
    (found,) = flat(open_source([str(tmp_path)], per_shard=2))
    assert found.picture == photos[0][1]


def test_a_table_of_urls_that_are_downloaded_names_the_files(tmp_path: Path) -> None:
    """img2dataset's kind of table: a column of URLs, which is not read, beside that of the paths."""
    photos = write_photos(tmp_path / "p", 3)
    columns = {
        "url": [f"https://example.org/{n}?size=large" for n in range(3)],
        "caption": ["zero", "one", "two"],
        "local_path": [f"{tmp_path}/p/{photos[0][0]}", photos[1][0], None],
        "status": ["success", "success", "failed_to_download"],
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    source = open_source([str(tmp_path / "p")], captions=str(tmp_path / "t.parquet"), per_shard=9)
    ((one, other, last),) = read(source)
    assert isinstance(one, Raw)
    assert isinstance(other, Raw)
    assert [(each.picture, each.caption) for each in (one, other)] == [
        (photos[0][1], "zero"),
        (photos[1][1], "one"),
    ]
    assert rejected(source) == [("row 2", "bad row")]
    assert isinstance(last, Rejected)
    pyarrow.parquet.write_table(pyarrow.table(columns).select(["url", "caption"]), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"but URLs: download the pictures first, such as with img2dataset"):
        open_source([str(tmp_path / "p")], captions=str(tmp_path / "t.parquet"), per_shard=9)


def test_captions_of_a_picture_share_its_content(tmp_path: Path) -> None:
    write_photos(tmp_path, 1)
    (tmp_path / "t.csv").write_text("image,caption\np000.jpg,a\np000.jpg,b\n")
    one, other = flat(open_source([str(tmp_path)], captions=str(tmp_path / "t.csv"), per_shard=9))
    assert one.picture is other.picture
    assert (one.key, other.key) == ("000000000", "000000001")


def test_descriptions_tell_sources_apart(tmp_path: Path) -> None:
    write_photos(tmp_path, 1)
    table = tmp_path / "t.csv"
    digests = set()
    for caption in ("a", "b", "a"):
        table.write_text(f"image,caption\np000.jpg,{caption}\n")
        digests.add(json.dumps(open_source([str(tmp_path)], captions=str(table), per_shard=9).description))
    assert len(digests) == 2
