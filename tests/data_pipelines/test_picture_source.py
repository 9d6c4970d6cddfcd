from __future__ import annotations

import json
import os
from pathlib import Path

from segclip.data_pipelines.source_types import Raw, Rejected
from segclip.data_pipelines.sources import open_source
from tests.data_pipelines.photos import write_photos
from tests.data_pipelines.source_records import flat, read, rejected


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
        *["path outside the folder"] * 5,
        *["picture missing"] * 2,
        *["picture is no file"] * 2,
        "picture file too large",
        "bad row",
    ]


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
