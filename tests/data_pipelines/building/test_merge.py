from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from segclip.data_pipelines.building import merge
from segclip.data_pipelines.building.build import build_set
from segclip.data_pipelines.building.merge import merge_set
from segclip.data_pipelines.building.open_source import open_source
from segclip.data_pipelines.building.options import Options
from segclip.data_pipelines.building.records import UnitRecord, write_record
from segclip.data_pipelines.building.source import Source
from segclip.data_pipelines.storage.store import Store
from segclip.data_pipelines.verify import verify_set
from tests.data_pipelines.photos import files_of, photo, samples_of, write_photos

UNIQUE = Options(per_shard=3, superpixels=None, unique=True)
# Which picture each of eleven files holds; in shards of three: 0 1 0 | 2 1 3 | 0 4 4 | 1 5
PICTURES = [0, 1, 0, 2, 1, 3, 0, 4, 4, 1, 5]


@pytest.fixture
def doubles(tmp_path: Path) -> Source:
    folder = tmp_path / "photos"
    write_photos(folder, len(PICTURES))
    for number, picture in enumerate(PICTURES):
        (folder / photo(number)[0]).write_bytes(photo(picture)[1])
    return open_source([str(folder)], per_shard=3)


def keys(folder: Path) -> list[int]:
    return [int(key) for shard in samples_of(folder).values() for key in shard]


def test_of_equal_pictures_the_first_is_kept_within_and_across_shards(
    doubles: Source, tmp_path: Path
) -> None:
    out = tmp_path / "set"
    build_set(str(out), doubles, UNIQUE)
    told: list[tuple[int, int]] = []
    merged = merge_set(str(out), lambda *each: told.append(each))
    assert keys(out) == [0, 1, 3, 5, 7, 10]
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert merged.rejected == {"duplicate picture": 5}
    assert verify_set(str(out)).samples == 6
    files = json.loads((out / "report.json").read_text())["files"]
    assert [(each["origin"], each["detail"]) for each in files] == [
        ("p002.webp (row 2)", "its picture is the same as p000.jpg"),
        ("00001.tar: 000000004", "its picture is the same as one in 00000.tar"),
        ("p008.webp (row 8)", "its picture is the same as p007.png"),
        ("00002.tar: 000000006", "its picture is the same as one in 00000.tar"),
        ("00003.tar: 000000009", "its picture is the same as one in 00000.tar"),
    ]


def test_merging_again_and_building_again_change_nothing(doubles: Source, tmp_path: Path) -> None:
    out = tmp_path / "set"
    build_set(str(out), doubles, UNIQUE)
    merge_set(str(out))
    whole = files_of(out)
    merge_set(str(out))
    assert files_of(out) == whole
    (out / "00002.tar").unlink()
    assert build_set(str(out), doubles, UNIQUE) == 3
    merge_set(str(out))
    assert files_of(out) == whole


def test_a_merge_that_was_interrupted_is_finished_by_building_and_merging(
    doubles: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_set(str(tmp_path / "whole"), doubles, UNIQUE)
    merge_set(str(tmp_path / "whole"))
    out = tmp_path / "set"
    build_set(str(out), doubles, UNIQUE)

    def interrupted(store: Store, record: UnitRecord) -> None:
        if record.unit == 2:
            raise KeyboardInterrupt  # between the shard and its record
        write_record(store, record)

    with monkeypatch.context() as patch:
        patch.setattr(merge, "write_record", interrupted)
        with pytest.raises(KeyboardInterrupt):
            merge_set(str(out))
    with pytest.raises(ValueError, match=r"the first is number 2 \(00002.tar is missing or has another size"):
        merge_set(str(out))
    build_set(str(out), doubles, UNIQUE)
    merge_set(str(out))
    assert files_of(out) == files_of(tmp_path / "whole")


def test_captions_of_one_file_are_not_duplicates(tmp_path: Path) -> None:
    write_photos(tmp_path / "p", 2)
    (tmp_path / "p" / "copy.jpg").write_bytes(photo(0)[1])
    rows = ["p000.jpg,a", "p000.jpg,b", "copy.jpg,c", "p001.png,d", "p000.jpg,e", "copy.jpg,f"]
    (tmp_path / "t.csv").write_text("image,caption\n" + "\n".join(rows))
    for per_shard in (2, 10):
        out = tmp_path / str(per_shard)
        source = open_source([str(tmp_path / "p")], captions=str(tmp_path / "t.csv"), per_shard=per_shard)
        build_set(str(out), source, Options(per_shard=per_shard, superpixels=None, unique=True))
        merge_set(str(out))
        assert keys(out) == [0, 1, 3, 4]


def test_first_of_equals_is_that_of_a_plain_search() -> None:
    random = np.random.default_rng(0)
    pictures = [(int(p), int(q), int(f)) for p, q, f in random.integers(0, 3, (60, 3))]
    expected = []
    for number, (p, q, file) in enumerate(pictures):
        first = next(n for n, other in enumerate(pictures) if other[:2] == (p, q))
        expected.append(first if pictures[first][2] != file else number)
    text = "".join(word.to_bytes(8, "little").hex() for picture in pictures for word in picture)
    assert merge._first_of_equals([text[:480], "", text[480:]]).tolist() == expected
    assert merge._first_of_equals([""]).tolist() == []


def test_what_cannot_be_merged(tmp_path: Path, doubles: Source) -> None:
    (tmp_path / "bare").mkdir()
    with pytest.raises(
        ValueError, match=r"holds no build \(build/plan.json\): run segclip-shards build first"
    ):
        merge_set(str(tmp_path / "bare"))
    (tmp_path / "t.csv").write_text("image,caption\na.jpg,x\n")
    wrong = open_source([str(tmp_path / "photos")], captions=str(tmp_path / "t.csv"), per_shard=3)
    build_set(str(tmp_path / "set"), wrong, UNIQUE, part=(0, 2))
    with pytest.raises(ValueError, match="holds no samples: the causes are in build/units/"):
        merge_set(str(tmp_path / "set"))
