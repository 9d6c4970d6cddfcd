from __future__ import annotations

import json
from pathlib import Path

import pytest

from segclip.data_pipelines.manifest import read_manifest
from tests.data_pipelines.commands import run
from tests.data_pipelines.photos import files_of, samples_of, write_photos, write_tars


def test_from_a_folder_to_a_measured_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_photos(tmp_path / "p", 7)
    (tmp_path / "p" / "p003.jpg").write_bytes(b"")
    out = tmp_path / "set"
    build = ("build", tmp_path / "p", "--out", out, "--per-shard", 4, "--processes", 1)
    assert run(*build, "--superpixels", "slic:9", "--resize", 32) == 0
    printed = capsys.readouterr().out
    assert "6 samples in 2 shards" in printed
    assert "changed: pictures resized 6" in printed
    assert "rejected: empty picture file 1" in printed
    assert f"1 of 7 records are not in the set; each is named in {out}/report.json" in printed
    assert run("verify", out) == 0
    assert run("show", out, "--out", tmp_path / "page.png", "--superpixels") == 0
    assert run("stats", out, "--json", tmp_path / "stats.json") == 0
    printed = capsys.readouterr().out
    assert "picture: short side" in printed
    assert "lacking: nothing" in printed
    assert json.loads((tmp_path / "stats.json").read_text())["distributions"]["superpixels"]["maximum"] <= 9
    manifest = read_manifest(str(out))
    assert manifest.source["options"]["resize"] == 32
    assert manifest.source["rejected"] == {"empty picture file": 1}


def test_parts_then_merge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tars(tmp_path / "tars", [3, 3, 3])
    build = ("build", f"{tmp_path}/tars/{{00000..00002}}.tar", "--superpixels", "none", "--processes", 1)
    build = (*build, "--per-shard", 3)
    out = tmp_path / "set"
    for number in range(2):
        assert run(*build, "--out", out, "--part", f"{number}/2") == 0
    told = f"part 1/2: 3 records read now; when all parts are done: segclip-shards merge {out}"
    assert told in capsys.readouterr().out
    assert run("merge", out) == 0
    assert run(*build, "--out", tmp_path / "whole") == 0
    assert files_of(out) == files_of(tmp_path / "whole")


def test_superpixels_for_a_set(scene_set: Path, tmp_path: Path) -> None:
    made = ("superpixels", scene_set, "--superpixels", "felzenszwalb:50,0.8,30", "--processes", 1)
    assert run(*made, "--out", tmp_path / "set") == 0
    assert read_manifest(str(tmp_path / "set")).superpixels.method == "felzenszwalb"  # type: ignore[union-attr]
    before, after = samples_of(scene_set), samples_of(tmp_path / "set")
    assert [list(shard) for shard in before.values()] == [list(shard) for shard in after.values()]
    one, other = before["00000.tar"]["00000000"], after["00000.tar"]["00000000"]
    assert {name for name in one if one[name] != other[name]} == {"superpixels.png"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("build", "DIR/none", "--out", "OUT"), "none does not exist"),
        (("build", "DIR", "--out", "OUT", "--superpixels", "slick"), "superpixels 'slick' are not known"),
        (("build", "DIR", "--out", "OUT", "--part", "2/2"), "--part '2/2': I counts from 0"),
        (("build", "DIR", "--out", "OUT", "--part", "one"), "--part 'one' is not of the form I/N"),
        (("build", "DIR", "--out", "OUT", "--resize", 3), "--resize is 3"),
        (("build", "DIR", "--out", "ftp://x"), "scheme 'ftp'"),
        (
            ("build", "DIR", "--captions", "DIR/t.csv", "--out", "OUT"),
            "no column of a usual name for the picture",
        ),
        (
            ("build", "DIR", "--captions", "DIR/t.csv", "--picture-column", "fil", "--out", "OUT"),
            "no column 'fil' (did you mean 'feil'?)",
        ),
        (("superpixels", "DIR", "--out", "OUT"), "holds neither a manifest.json nor tars"),
        (("superpixels", "DIR", "--out", "DIR"), "is the set itself"),
        (("superpixels", "DIR", "--out", "OUT", "--superpixels", "none"), "would only copy the set"),
        (("merge", "DIR"), "holds no build"),
        (("stats", "DIR"), "manifest.json does not exist"),
    ],
)
def test_errors_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[object, ...], message: str
) -> None:
    write_photos(tmp_path / "dir", 1)
    (tmp_path / "dir" / "t.csv").write_text("feil,caption\np000.jpg,x\n")
    places = {"DIR": str(tmp_path / "dir"), "OUT": str(tmp_path / "out")}
    given = []
    for each in map(str, arguments):
        for name, place in places.items():
            each = each.replace(name, place)
        given.append(each)
    assert run(*given) == 2
    (line,) = [each for each in capsys.readouterr().err.splitlines() if each.startswith("error:")]
    assert message in line
    assert not (tmp_path / "out").exists()
