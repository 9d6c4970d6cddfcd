from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from skimage.segmentation import felzenszwalb

from segclip.data_pipelines.building.build import build_set
from segclip.data_pipelines.building.merge import merge_set
from segclip.data_pipelines.building.open_source import open_source
from segclip.data_pipelines.building.options import Options
from segclip.data_pipelines.building.source import Source
from segclip.data_pipelines.building.tar_source import open_shards
from segclip.data_pipelines.label_maps import decode_label_map
from segclip.data_pipelines.manifest import read_manifest
from segclip.data_pipelines.pictures import decode_picture
from segclip.data_pipelines.shard_writer import pack
from segclip.data_pipelines.storage import store as store_module
from segclip.data_pipelines.storage.config import StoreConfig
from segclip.data_pipelines.storage.s3_server import s3_server
from segclip.data_pipelines.storage.store import open_store, upload
from segclip.data_pipelines.superpixels import SuperpixelMethod
from segclip.data_pipelines.verify import verify_set
from tests.data_pipelines.photos import files_of, photo, samples_of, write_photos, write_tars

SLIC = SuperpixelMethod(segments=9)
OPTIONS = Options(per_shard=4, superpixels=SLIC)


@pytest.fixture
def photos(tmp_path: Path) -> Source:
    """Fourteen pictures, two of which are bad and one of which has no caption."""
    folder = tmp_path / "photos"
    write_photos(folder, 14)
    (folder / "p005.webp").write_bytes(b"<html>")
    (folder / "p006.jpg").write_bytes(b"")
    (folder / "p013.txt").write_text(" ")
    return open_source([str(folder)], per_shard=4)


def build(out: Path, source: Source, options: Options = OPTIONS, **how: object) -> dict[str, bytes]:
    build_set(str(out), source, options, **how)  # type: ignore[arg-type]
    merge_set(str(out))
    return files_of(out)


def test_a_folder_becomes_a_set_that_training_and_verify_read(photos: Source, tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    read = build_set(str(tmp_path / "set"), photos, OPTIONS, report=lambda *each: told.append(each))
    merged = merge_set(str(tmp_path / "set"))
    assert read == 14
    assert told[0] == (0, 14)
    assert told[-1] == (14, 14)
    manifest = verify_set(str(tmp_path / "set"))
    assert manifest == merged.manifest
    assert [(shard.path, shard.count) for shard in manifest.shards] == [
        ("00000.tar", 4),
        ("00001.tar", 2),
        ("00002.tar", 4),
        ("00003.tar", 1),
    ]
    assert manifest.superpixels == SLIC
    assert manifest.source["rejected"] == merged.rejected
    assert merged.rejected == {
        "empty caption": 1,
        "empty picture file": 1,
        "web page instead of a picture": 1,
    }
    sample = samples_of(tmp_path / "set")["00001.tar"]["000000007"]
    _, content, caption = photo(7)
    assert sample["png"] == content
    assert sample["txt"] == caption.encode()
    assert json.loads(sample["json"]) == {"file": "p007.png"}
    assert decode_label_map(sample["superpixels.png"]).shape == (48, 72)


def test_the_report_names_every_bad_file(photos: Source, tmp_path: Path) -> None:
    build(tmp_path / "set", photos)
    report = json.loads((tmp_path / "set" / "report.json").read_text())
    assert (report["read"], report["kept"]) == (14, 11)
    assert [(each["origin"], each["cause"]) for each in report["files"]] == [
        ("p005.webp (row 5)", "web page instead of a picture"),
        ("p006.jpg (row 6)", "empty picture file"),
        ("p013.png (row 13)", "empty caption"),
    ]


def test_captions_are_cleaned_and_counted(tmp_path: Path) -> None:
    write_photos(tmp_path / "p", 4)
    captions = ["plain", "salt &amp; pepper", "one two three four", " "]
    lines = [json.dumps({"file": photo(n)[0], "caption": caption}) for n, caption in enumerate(captions)]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    source = open_source([str(tmp_path / "p")], captions=str(tmp_path / "t.jsonl"), per_shard=9)
    build_set(str(tmp_path / "set"), source, Options(superpixels=None, longest_caption=15))
    merged = merge_set(str(tmp_path / "set"))
    assert merged.changes == {"captions cut": 1, "captions repaired": 1}
    assert merged.rejected == {"empty caption": 1}
    (shard,) = samples_of(tmp_path / "set").values()
    assert [sample["txt"] for sample in shard.values()] == [b"plain", b"salt & pepper", b"one two three"]


def test_tars_are_cut_evenly_and_broken_ones_reported(tmp_path: Path) -> None:
    photos = write_tars(tmp_path / "tars", [9, 3, 5])
    whole = (tmp_path / "tars" / "00001.tar").read_bytes()
    (tmp_path / "tars" / "00001.tar").write_bytes(whole[:-9000])
    source = open_source([f"{tmp_path}/tars/{{00000..00002}}.tar"], per_shard=4)
    told: list[tuple[int, int | None]] = []
    build_set(str(tmp_path / "set"), source, OPTIONS, report=lambda *each: told.append(each))
    merged = merge_set(str(tmp_path / "set"))
    assert merged.rejected == {"broken tar": 1}
    assert told[0] == (0, None)
    assert told[-1] == (15, 15)
    found = samples_of(tmp_path / "set")
    assert {name: len(shard) for name, shard in found.items()} == {
        "00000-000.tar": 3,
        "00000-001.tar": 3,
        "00000-002.tar": 3,
        "00002-000.tar": 2,
        "00002-001.tar": 3,
    }
    kept = [sample for shard in found.values() for sample in shard.values()]
    assert [sample["txt"].decode() for sample in kept] == [
        caption for _, _, caption in photos[:9] + photos[12:]
    ]
    assert merged.manifest == verify_set(str(tmp_path / "set"))


def test_felzenszwalb_maps_are_those_of_scikit_image(tmp_path: Path) -> None:
    write_photos(tmp_path / "p", 1, side=64)
    method = SuperpixelMethod(method="felzenszwalb", scale=50, sigma=0.6, min_size=40)
    build(tmp_path / "set", open_source([str(tmp_path / "p")], per_shard=1), Options(superpixels=method))
    ((sample,),) = (shard.values() for shard in samples_of(tmp_path / "set").values())
    picture = decode_picture(sample["jpg"], 10**6).permute(1, 2, 0).numpy()
    expected = felzenszwalb(picture, scale=50, sigma=0.6, min_size=40)
    assert expected.max() >= 3
    np.testing.assert_array_equal(decode_label_map(sample["superpixels.png"]), expected)
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_text())
    assert manifest["superpixels"] == {
        "method": "felzenszwalb",
        "scale": 50.0,
        "sigma": 0.6,
        "min_size": 40,
        "shrink": 1,
    }


def test_a_second_run_makes_what_is_missing_and_gives_the_same_bytes(photos: Source, tmp_path: Path) -> None:
    whole = build(tmp_path / "whole", photos)

    def interrupt(done: int, total: int | None) -> None:
        if done == 9:
            raise KeyboardInterrupt

    out = tmp_path / "set"
    with pytest.raises(KeyboardInterrupt):
        build_set(str(out), photos, OPTIONS, report=interrupt)
    assert sorted(path.name for path in out.glob("*.tar")) == ["00000.tar", "00001.tar"]
    with pytest.raises(
        ValueError, match=r"2 of the 4 pieces of .* are not built, the first is number 2: run the builds"
    ):
        merge_set(str(out))
    assert build_set(str(out), photos, OPTIONS) == 6
    merge_set(str(out))
    assert files_of(out) == whole
    assert build_set(str(out), photos, OPTIONS) == 0


@pytest.mark.parametrize("damage", ["gone", "cut", "record gone", "record cut"])
def test_a_damaged_unit_is_built_again(photos: Source, tmp_path: Path, damage: str) -> None:
    out = tmp_path / "set"
    whole = build(out, photos)
    path = out / ("build/units/00002.json" if "record" in damage else "00002.tar")
    path.unlink() if "gone" in damage else path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"1 of the 4 pieces .* the first is number 2"):
        merge_set(str(out))
    assert build_set(str(out), photos, OPTIONS) == 4
    merge_set(str(out))
    assert files_of(out) == whole


def test_parts_and_merge_equal_one_build(photos: Source, tmp_path: Path) -> None:
    whole = build(tmp_path / "whole", photos)
    out = tmp_path / "set"
    for part, records in ((2, 4), (0, 4 + 2), (1, 4)):
        assert build_set(str(out), photos, OPTIONS, part=(part, 3)) == records
    assert not (out / "manifest.json").exists()
    merge_set(str(out))
    assert files_of(out) == whole
    with pytest.raises(ValueError, match="part 3/3 is not one of 0/3 to 2/3"):
        build_set(str(out), photos, OPTIONS, part=(3, 3))


@pytest.mark.slow
def test_processes_do_not_change_the_bytes(photos: Source, tmp_path: Path) -> None:
    assert build(tmp_path / "two", photos, processes=2) == build(tmp_path / "one", photos)


def test_another_plan_in_the_same_place_is_refused(photos: Source, tmp_path: Path) -> None:
    out = tmp_path / "set"
    build(out, photos)
    other = Options(per_shard=4, superpixels=SLIC, resize=32)
    with pytest.raises(
        ValueError, match=r"holds another build \(options resize was None and is now 32\): choose"
    ):
        build_set(str(out), photos, other)
    fresh = build(tmp_path / "fresh", photos, other)

    def interrupt(done: int, total: int | None) -> None:
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_set(str(out), photos, other, overwrite=True, report=interrupt)
    assert build_set(str(out), photos, other) == 14 - 4  # what is left of the old build does not count
    merge_set(str(out))
    assert files_of(out) == fresh
    assert build(out, photos, other, overwrite=True) == fresh
    (out / "build" / "plan.json").write_text("{")
    with pytest.raises(ValueError, match=r"plan.json is not readable"):
        build_set(str(out), photos, other)


def test_a_source_without_a_single_good_record_is_an_error_that_leaves_no_plan_in_the_way(
    photos: Source, tmp_path: Path
) -> None:
    (tmp_path / "t.csv").write_text("image,caption\n" + "a.jpg,x\n" * 5 + ",y\n")
    wrong = open_source([str(tmp_path / "photos")], captions=str(tmp_path / "t.csv"), per_shard=4)
    with pytest.raises(
        ValueError, match=r"not one of the first 6 records is fit .*picture missing: 5 times, such as"
    ):
        build_set(str(tmp_path / "set"), wrong, OPTIONS)
    build(tmp_path / "set", photos)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "x.tar").write_bytes(pack([])[0])
    with pytest.raises(ValueError, match="the source has no samples"):
        build_set(str(tmp_path / "e"), open_source([str(tmp_path / "empty")], per_shard=4), OPTIONS)


def test_a_tar_that_vanishes_stops_the_build(tmp_path: Path) -> None:
    write_tars(tmp_path / "tars", [2, 2])
    source = open_source([str(tmp_path / "tars")], per_shard=2)
    (tmp_path / "tars" / "00001.tar").unlink()
    with pytest.raises(ValueError, match=r"00001.tar does not exist"):
        build_set(str(tmp_path / "set"), source, OPTIONS)


def test_keys_too_long_for_a_shard_are_reported(tmp_path: Path) -> None:
    _, content, _ = photo(0)
    members = {"jpg": content, "txt": b"x"}
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "x.tar").write_bytes(pack([("k" * 90, members), ("a", members)])[0])
    build_set(str(tmp_path / "set"), open_shards(str(tmp_path / "tars")), Options(superpixels=SLIC))
    assert merge_set(str(tmp_path / "set")).rejected == {"key too long": 1}


def test_superpixels_are_added_to_a_set_without_touching_the_rest(photos: Source, tmp_path: Path) -> None:
    build(tmp_path / "bare", photos, Options(per_shard=4, superpixels=None))
    build(tmp_path / "full", photos)
    build(tmp_path / "added", open_shards(str(tmp_path / "bare")), Options(per_shard=10**9, superpixels=SLIC))
    added, full = samples_of(tmp_path / "added"), samples_of(tmp_path / "full")
    assert added == full
    assert "superpixels.png" in added["00000.tar"]["000000000"]
    manifest = verify_set(str(tmp_path / "added"))
    assert manifest.superpixels == SLIC
    assert manifest.source["input"]["made_from"] == read_manifest(str(tmp_path / "bare")).source
    assert "superpixels.png" not in samples_of(tmp_path / "bare")["00000.tar"]["000000000"]


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_a_killed_build_leaves_no_processes_and_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 10, side=400)
    arguments = ["--per-shard", "1", "--superpixels", "felzenszwalb:224,0.9,224", "--processes", "2"]
    command = [
        sys.executable,
        "-m",
        "segclip.data_pipelines.cli",
        "build",
        str(tmp_path / "photos"),
        *arguments,
    ]
    out = tmp_path / "set"
    # A group of its own, by which those it leaves behind are found.
    process = subprocess.Popen(
        [*command, "--out", str(out)], start_new_session=True, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not list(out.glob("build/units/*.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.wait()
    while group_lives(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    done = len(list(out.glob("build/units/*.json")))
    assert 1 <= done < 10
    assert not (out / "manifest.json").exists()
    options = Options(per_shard=1, superpixels=SuperpixelMethod(method="felzenszwalb"))
    source = open_source([str(tmp_path / "photos")], per_shard=1)
    assert build_set(str(out), source, options) == 10 - done
    merge_set(str(out))
    assert verify_set(str(out)).samples == 10
    assert files_of(out) == build(tmp_path / "whole", source, options)


@pytest.mark.slow
def test_from_bucket_to_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tars, and pictures with a table, are read from a real S3 server by two processes and written back to it."""
    write_tars(tmp_path / "tars", [3, 2])
    write_photos(tmp_path / "photos", 3)
    (tmp_path / "photos" / "p001.png").unlink()
    (tmp_path / "photos" / "t.csv").write_text(
        "file,caption\n" + "".join(f"{photo(n)[0]},caption {n}\n" for n in range(3))
    )
    # As a user's settings, but for the three minutes for which a server may be away.
    monkeypatch.setattr(store_module, "StoreConfig", partial(StoreConfig, retries=2, retry_seconds=5))
    with s3_server(tmp_path / "s3", bucket="bucket") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        upload(tmp_path / "tars", f"{server.url}/tars")
        upload(tmp_path / "photos", f"{server.url}/photos")
        source = open_source([f"{server.url}/tars/{{00000..00001}}.tar"], per_shard=2)
        for part in range(2):
            build_set(f"{server.url}/set", source, OPTIONS, part=(part, 2), processes=2)
        merge_set(f"{server.url}/set")
        assert verify_set(f"{server.url}/set").samples == 5
        local = open_source([str(tmp_path / "tars")], per_shard=2)
        build_set(str(tmp_path / "set"), local, OPTIONS)
        store = open_store(f"{server.url}/set")
        for path in (tmp_path / "set").glob("*.tar"):
            assert bytes(store.get(path.name)) == path.read_bytes()

        table = f"{server.url}/photos/t.csv"
        pictures = open_source([f"{server.url}/photos"], captions=table, per_shard=5)
        build_set(f"{server.url}/second", pictures, OPTIONS)
        merged = merge_set(f"{server.url}/second")
        assert merged.rejected == {"picture missing": 1}
        assert verify_set(f"{server.url}/second").samples == 2
        beside = open_source([f"{server.url}/photos"], per_shard=5)
        build_set(str(tmp_path / "third"), beside, OPTIONS)
        assert merge_set(str(tmp_path / "third")).manifest.samples == 2
        shutil.rmtree(tmp_path / "third")
        missing = open_source([f"{server.url}/tars/{{00000..00002}}.tar"], per_shard=2)
        with pytest.raises(ValueError, match=r"tars/00002.tar does not exist"):
            build_set(str(tmp_path / "third"), missing, OPTIONS)
    with pytest.raises(ValueError, match="cannot be reached"):
        build_set(str(tmp_path / "fourth"), beside, OPTIONS)
