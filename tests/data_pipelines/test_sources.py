from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest

from segclip.data_pipelines.shards import pack
from segclip.data_pipelines.sources import (
    Raw,
    Rejected,
    Source,
    TableOptions,
    open_shards,
    open_source,
)
from tests.data_pipelines.photos import write_photos, write_tars


def read(source: Source) -> list[list[Raw | Rejected]]:
    units = []
    for unit in source.units:
        count, records = unit.read()
        units.append(list(records))
        assert len(units[-1]) == count
        assert unit.records in (None, count)
    return units


def flat(source: Source) -> list[Raw]:
    found = [record for unit in read(source) for record in unit]
    assert all(isinstance(record, Raw) for record in found)
    return [record for record in found if isinstance(record, Raw)]


def rejected(source: Source) -> list[tuple[str, str]]:
    return [
        (record.origin.rpartition("/")[2], record.cause)
        for unit in read(source)
        for record in unit
        if isinstance(record, Rejected)
    ]


def test_tars_by_range_folder_and_list(tmp_path: Path) -> None:
    photos = write_tars(tmp_path, [3, 2, 4])
    ways = [
        [f"{tmp_path}/{{00000..00002}}.tar"],
        [str(tmp_path)],
        [tmp_path.as_uri()],
        [f"{tmp_path}/00000.tar", f"{tmp_path}/{{00001,00002}}.tar"],
    ]
    for way in ways:
        source = open_source(way, per_shard=3)
        assert [unit.stem for unit in source.units] == ["00000", "00001", "00002"]
        found = flat(source)
        assert [record.picture for record in found] == [content for _, content, _ in photos]
        assert [record.caption for record in found] == [caption.encode() for _, _, caption in photos]
        assert [record.key for record in found][:4] == [
            "00000-000000",
            "00000-000001",
            "00000-000002",
            "00001-000000",
        ]
        assert found[0].members == {"json": b'{"a": 1}'}


def test_small_tars_are_read_together(tmp_path: Path) -> None:
    write_tars(tmp_path, [3, 2, 4, 1, 1])
    assert [len(unit) for unit in read(open_source([str(tmp_path)], per_shard=7))] == [5, 5, 1]
    (tmp_path / "00000.tar").write_bytes(b"broken")  # judged by the first that can be read
    source = open_source([str(tmp_path)], per_shard=7)
    assert [len(unit) for unit in read(source)] == [1 + 2 + 4, 2]
    assert rejected(source) == [("00000.tar", "broken tar")]


def test_samples_without_picture_or_caption_and_members_left_out(tmp_path: Path) -> None:
    odd = [
        ("a", {"jpg": b"x", "txt": b"a", "cls": b"3", "pkl": pickle.dumps(3)}),
        ("b", {"txt": b"b"}),
        ("c", {"jpg": b"x"}),
        ("d", {"pkl": b"x"}),
    ]
    (tmp_path / "x.tar").write_bytes(pack(odd)[0])
    source = open_source([str(tmp_path)], per_shard=10)
    assert rejected(source) == [
        ("x.tar: b", "no picture"),
        ("x.tar: c", "no caption"),
        ("x.tar: d", "no picture"),
    ]
    first = read(source)[0][0]
    assert isinstance(first, Raw)
    assert first.left_out == 2
    assert json.loads(first.members["json"]) == {"key": "a"}


def test_an_unsafe_key_condemns_its_tar(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(pack([("../a", {"jpg": b"x", "txt": b"a"})])[0])
    assert rejected(open_source([str(tmp_path / "x.tar")], per_shard=10)) == [("x.tar", "broken tar")]


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


def test_shards_keep_names_keys_and_members(scene_set: Path) -> None:
    source = open_shards(str(scene_set))
    assert [unit.stem for unit in source.units] == [f"{number:05d}" for number in range(6)]
    assert [unit.records for unit in source.units] == [17, 17, 17, 17, 17, 15]
    assert source.description["made_from"]["seed"] == 5
    first = flat(source)[0]
    assert (first.key, first.extension, first.caption) == ("00000000", "jpg", None)
    assert list(first.members) == ["txt", "json", "superpixels.png"]


def test_descriptions_tell_sources_apart(tmp_path: Path) -> None:
    write_photos(tmp_path, 1)
    table = tmp_path / "t.csv"
    digests = set()
    for caption in ("a", "b", "a"):
        table.write_text(f"image,caption\np000.jpg,{caption}\n")
        digests.add(json.dumps(open_source([str(tmp_path)], captions=str(table), per_shard=9).description))
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("sources", "captions", "message"),
    [
        (["DIR/{00..03}.tar"], None, r"00.tar does not exist: .*a range with gaps is written"),
        (["DIR/{00..03.tar"], None, "cannot be read: Unbalanced braces"),
        (["DIR"], None, "holds neither tars nor pictures"),
        (["DIR/none"], None, "does not exist"),
        (["DIR", "DIR"], None, "holds no tars"),
        (["DIR/x.tar", "DIR/x.tar"], None, "1 tars are named twice"),
        (["DIR", "DIR"], "t.csv", "of one folder of pictures, not of 2"),
        (["DIR"], "DIR/none.csv", "none.csv does not exist"),
        (["DIR/none"], "DIR/t.csv", "none does not exist"),
        (["pipe:cat x.tar"], None, "pipe: URLs run shell commands"),
        (["ftp://x/y.tar"], None, "scheme 'ftp'"),
    ],
)
def test_sources_that_are_not_there(
    tmp_path: Path, sources: list[str], captions: str | None, message: str
) -> None:
    if "x.tar" in sources[0]:
        (tmp_path / "x.tar").write_bytes(b"")
    paths = [each.replace("DIR", str(tmp_path)) for each in sources]
    table = None if captions is None else captions.replace("DIR", str(tmp_path))
    with pytest.raises(ValueError, match=message):
        open_source(paths, captions=table, table=TableOptions(), per_shard=5)


def test_a_password_in_a_url_is_not_written_down(tmp_path: Path) -> None:
    write_photos(tmp_path, 1)
    (tmp_path / "t.csv").write_text("image,caption\np000.jpg,a\n")
    source = open_source(
        ["https://me:secret@example.org/pictures"], captions=str(tmp_path / "t.csv"), per_shard=9
    )
    assert source.description["pictures"] == "https://example.org/pictures"
