from __future__ import annotations

import json
import pickle
from pathlib import Path

from segclip.data_pipelines.building.open_source import open_source
from segclip.data_pipelines.building.source import Raw
from segclip.data_pipelines.building.tar_source import open_shards
from segclip.data_pipelines.shard_writer import pack
from tests.data_pipelines.building.source_records import flat, read, rejected
from tests.data_pipelines.photos import write_tars


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


def test_what_img2dataset_writes_beside_its_tars_is_no_source(tmp_path: Path) -> None:
    photos = write_tars(tmp_path, [2, 1])
    for name in ("00000", "00001"):
        (tmp_path / f"{name}_stats.json").write_text('{"count": 2, "successes": 2}')
        (tmp_path / f"{name}.parquet").write_bytes(b"PAR1")
    (tmp_path / "_tmp").mkdir()
    (tmp_path / "_tmp" / "0.feather").write_bytes(b"ARROW1")
    found = flat(open_source([str(tmp_path)], per_shard=2))
    assert [record.picture for record in found] == [content for _, content, _ in photos]


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


def test_shards_keep_names_keys_and_members(scene_set: Path) -> None:
    source = open_shards(str(scene_set))
    assert [unit.stem for unit in source.units] == [f"{number:05d}" for number in range(6)]
    assert [unit.records for unit in source.units] == [17, 17, 17, 17, 17, 15]
    assert source.description["made_from"]["seed"] == 5
    first = flat(source)[0]
    assert (first.key, first.extension, first.caption) == ("00000000", "jpg", None)
    assert list(first.members) == ["txt", "json", "superpixels.png"]
