from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from segclip.data_pipelines.contact_sheet import contact_sheet
from segclip.data_pipelines.manifest import read_manifest
from segclip.data_pipelines.scenes.scene import draw_scenes
from tests.data_pipelines.commands import run


def test_the_way_from_nothing_to_an_uploaded_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "set"
    assert (
        run(
            "scenes",
            "--out",
            out,
            "--count",
            30,
            "--seed",
            2,
            "--size",
            48,
            "--per-shard",
            20,
            "--processes",
            1,
        )
        == 0
    )
    assert "30 scenes in 2 shards" in capsys.readouterr().out
    assert run("verify", out) == 0
    assert "2 shards with 30 samples match their manifest" in capsys.readouterr().out
    assert run("show", out, "--out", tmp_path / "page.png") == 0
    with Image.open(tmp_path / "page.png") as page:
        assert page.size[0] > 1000
    assert run("upload", out, tmp_path / "copy") == 0
    assert read_manifest(str(tmp_path / "copy")) == read_manifest(str(out))
    assert run("scenes-voc", "--out", tmp_path / "voc", "--count", 3, "--seed", 7) == 0
    assert len(list((tmp_path / "voc" / "VOCdevkit" / "VOC2012" / "JPEGImages").iterdir())) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("scenes", "--out", "OUT", "--count", 0), "count is 0"),
        (("scenes", "--out", "OUT", "--count", 5, "--size", 8), "scene size 8 is too small"),
        (("scenes", "--out", "ftp://x", "--count", 5), "scheme 'ftp'"),
        (("verify", "OUT/nowhere"), "does not exist"),
        (("show", "OUT/nowhere"), "does not exist"),
        (("upload", "OUT/nowhere", "OUT"), "does not exist"),
    ],
)
def test_errors_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[object, ...], message: str
) -> None:
    code = run(*(str(each).replace("OUT", str(tmp_path)) for each in arguments))
    assert code == 2
    (line,) = [each for each in capsys.readouterr().err.splitlines() if each.startswith("error:")]
    assert message in line


def test_the_page_shows_samples_spread_over_the_set(scene_set: Path, tmp_path: Path) -> None:
    captions = contact_sheet(str(scene_set), tmp_path / "page.png", count=4, outlines=True)
    scenes = draw_scenes(5, 0, 100)
    assert captions == [scenes[i].caption for i in (0, 33, 66, 99)]
    with Image.open(tmp_path / "page.png") as page:
        assert page.mode == "RGB"


@pytest.mark.parametrize("command", [[], ["build"], ["stats"], ["scenes"]])
def test_help_does_not_wait_for_what_takes_long_to_import(command: list[str]) -> None:
    code = f"""
import sys
from segclip.data_pipelines.cli import main
try:
    main({[*command, "--help"]!r})
except SystemExit:
    print(sorted(sys.modules.keys() & {{"torch", "pyarrow", "obstore", "open_clip", "PIL", "skimage"}}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert "usage: segclip-shards" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
