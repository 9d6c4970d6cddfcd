"""``segclip-eval`` and ``segclip-segment`` as their users meet them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segclip.eval import run, segment_cli
from tests.exit_code import exit_code


def call(module, capsys, *arguments) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command line in this process."""
    code = exit_code(module.main, *arguments)
    out, err = capsys.readouterr()
    return code, out, err


def one_line(text: str) -> str:
    """The error line; everything else on stderr would be noise to a user."""
    lines = [line for line in text.splitlines() if line.strip()]
    assert len(lines) == 1, text
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture
def photo(tmp_path, pictures) -> Path:
    Image.fromarray(pictures(50, 70)).save(tmp_path / "photo.jpg")
    return tmp_path / "photo.jpg"


def test_eval_writes_result_and_pictures(checkpoint, scenes_root, tmp_path, capsys) -> None:
    out = tmp_path / "scores"
    code, printed, _ = call(
        run, capsys, "--checkpoint", checkpoint.parent, "--dataset", "scenes", "--data-root", scenes_root,
        "--out", out, "--limit", 2, "--pictures", 1,
    )  # fmt: skip
    assert code == 0
    assert "red circle" in printed
    assert "mIoU" in printed
    result = json.loads((out / "result.json").read_text())
    assert result["images"] == 2
    assert result["protocol"]["name"] == "scenes"
    assert {each.name for each in out.iterdir()} == {
        "result.json",
        result["counts"]["name"],
        "confusion.png",
        "overlays.png",
        "report.html",
        "worst.png",
    }


def test_eval_writes_beside_the_checkpoint_if_not_told_where(
    checkpoint, scenes_root, tmp_path, capsys
) -> None:
    export = tmp_path / "run" / "export"
    shutil.copytree(checkpoint, export)
    code, printed, _ = call(
        run, capsys, "--checkpoint", tmp_path / "run", "--dataset", "scenes", "--data-root", scenes_root,
        "--limit", 1, "--pictures", 1,
    )  # fmt: skip
    assert code == 0
    folder = tmp_path / "run" / "evaluation" / "scenes-scenes-first1"
    assert {each.name for each in folder.iterdir()} >= {"result.json", "confusion.png", "overlays.png"}
    assert f"wrote {folder / 'result.json'}" in printed


def test_segment_takes_the_network_of_the_quickstart(
    checkpoint, photo, tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, errors = call(segment_cli, capsys, photo, "--classes", "red circle", "sand")
    assert code == 2
    assert "no quickstart has left one in runs/quickstart/train/export" in one_line(errors)
    shutil.copytree(checkpoint, tmp_path / "runs" / "quickstart" / "train" / "export")
    code, printed, _ = call(segment_cli, capsys, photo, "--classes", "red circle", "sand")
    assert code == 0
    assert printed.splitlines()[0] == "checkpoint runs/quickstart/train/export"
    assert (tmp_path / "segments" / "photo_overlay.png").is_file()


def test_eval_can_go_on_past_broken_images(checkpoint, scenes_root, capsys) -> None:
    (scenes_root / "VOCdevkit/VOC2012/JPEGImages/scene_2.jpg").write_bytes(b"broken")
    wanted = ("--checkpoint", checkpoint, "--dataset", "scenes", "--data-root", scenes_root)
    code, _, errors = call(run, capsys, *wanted)
    assert code == 2
    assert "scene_2.jpg does not decode as an image" in errors
    code, printed, _ = call(run, capsys, *wanted, "--skip-broken")
    assert code == 0
    assert "left out: scene_2" in printed
    assert "1 images could not be read" in printed


def test_segment_writes_overlay_labels_and_areas(checkpoint, photo, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    (tmp_path / "other").mkdir()
    twin = tmp_path / "other" / "photo.jpg"
    twin.write_bytes(photo.read_bytes())
    code, printed, _ = call(
        segment_cli,
        capsys,
        photo,
        twin,
        "--classes",
        "red circle",
        "sand",
        "--checkpoint",
        checkpoint,
        "--out",
        out,
    )
    assert code == 0
    assert str(photo) in printed
    names = ["photo.json", "photo_labels.png", "photo_overlay.png"]
    assert sorted(each.name for each in out.iterdir()) == sorted(
        names + [n.replace("photo", "photo-2") for n in names]
    )
    content = json.loads((out / "photo.json").read_text())
    assert [each["name"] for each in content["classes"]] == ["red circle", "sand"]
    assert sum(each["share"] for each in content["classes"]) == pytest.approx(1, abs=1e-5)
    assert content["protocol"] == "scenes"  # from the checkpoint's card
    with Image.open(out / "photo_labels.png") as picture:
        labels = np.asarray(picture)
    assert labels.shape == (50, 70)
    assert [int((labels == each["label"]).sum()) for each in content["classes"]] == [
        each["pixels"] for each in content["classes"]
    ]


def test_segment_goes_on_past_broken_pictures(checkpoint, photo, tmp_path, bomb, capsys) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    huge = bomb(tmp_path / "huge.png", 20_000)
    code, _, errors = call(
        segment_cli, capsys, broken, huge, photo, "--classes", "a", "b", "--checkpoint", checkpoint,
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert code == 2
    # Rich before 14.3 ends its progress bar with an empty line.
    first, second, sum_up = filter(None, errors.splitlines())
    assert sum_up == "2 of 3 pictures could not be segmented"
    assert first.startswith(f"error: {broken} does not decode")
    assert second.startswith(f"error: {huge} has more than the")
    assert (tmp_path / "out" / "photo.json").is_file()


def test_segment_takes_folders_patterns_and_a_file_of_classes(
    checkpoint, pictures, tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one/a.png", "one/B.JPG", "one/deep/a.png", "two/a.tif"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pictures(24, 30, len(name))).save(path)
    (tmp_path / "photos/one/notes.txt").write_text("no picture")
    (tmp_path / "classes.txt").write_text("# mine\ncat, kitten\n\nsand\n")
    wanted = ("--classes-file", "classes.txt", "--checkpoint", checkpoint, "--regions")
    code, printed, _ = call(segment_cli, capsys, "photos/one", tmp_path / "photos/**/a.*", *wanted)
    assert code == 0
    assert "left out, no pictures by their ending: 1 files (notes.txt)" in printed
    # Each picture once, though the folder and the pattern both name photos/one/a.png.
    stems = sorted(path.stem for path in Path("segments").glob("*.json"))
    assert stems == ["B", "a", "a-2", "a-3"]
    content = json.loads(Path("segments/a-2.json").read_text())
    assert content["image"] == str(tmp_path / "photos/one/deep/a.png")
    assert [each["words"] for each in content["classes"]] == [["cat", "kitten"], ["sand"]]
    with Image.open("segments/a_regions.png") as picture:
        assert max(picture.size) == 640
    code, _, errors = call(segment_cli, capsys, "photos/two", *wanted)
    assert code == 2
    assert one_line(errors) == (
        "error: segments/a_overlay.png exists (and 3 more); give another folder with --out, or --overwrite"
    )
    assert json.loads(Path("segments/a.json").read_text())["image"] == "photos/one/a.png"
    code, _, _ = call(segment_cli, capsys, "photos/two", *wanted, "--overwrite")
    assert code == 0
    assert json.loads(Path("segments/a.json").read_text())["image"] == "photos/two/a.tif"


def test_segment_turns_pictures_upright_and_reads_all_kinds(checkpoint, pictures, tmp_path, capsys) -> None:
    array = pictures(24, 40)
    turned = Image.Exif()
    turned[0x0112] = 6  # stored lying on its side
    Image.fromarray(array).save(tmp_path / "turned.jpg", exif=turned)
    Image.fromarray(array[..., 0].astype(np.uint16) * 257).save(tmp_path / "sixteen.png")
    Image.fromarray(np.dstack([array, array[..., 0]])).save(tmp_path / "alpha.png")
    Image.fromarray(array).convert("P").save(tmp_path / "palette.gif")
    out = tmp_path / "out"
    code, _, _ = call(
        segment_cli, capsys, tmp_path, "--classes", "cat", "sand", "--checkpoint", checkpoint, "--out", out,
        "--background", "words", "--background-words", "sky", "wall",
    )  # fmt: skip
    assert code == 0
    sizes = {path.stem: json.loads(path.read_text())["height"] for path in out.glob("*.json")}
    assert sizes == {"turned": 40, "sixteen": 24, "alpha": 24, "palette": 24}
    with Image.open(out / "turned_labels.png") as picture:
        assert picture.size == (24, 40)
    assert json.loads((out / "alpha.json").read_text())["classes"][0]["words"] == ["sky", "wall"]


EVAL = ("--checkpoint", "{export}", "--dataset", "scenes", "--data-root", "{root}")
SEGMENT = ("{photo}", "--checkpoint", "{export}", "--classes", "cat")


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        (run, (*EVAL, "--dataset", "scene"), "unknown data set 'scene' (did you mean 'scenes'?)"),
        (run, (*EVAL, "--protocol", "scens"), "unknown protocol 'scens' (did you mean 'scenes'?)"),
        (run, (*EVAL, "--protocol", "segclip"), "protocol 'segclip' says nothing about data set 'scenes'"),
        (run, (*EVAL, "--protocol", "scenes", "photo"), "--protocol names 2 (scenes, photo); add --matrix"),
        (run, (*EVAL, "--data-root", "voc21=x"), "no data set 'voc21' is asked for"),
        (
            run,
            (*EVAL, "--matrix", "--protocol", "scens"),
            "unknown protocol 'scens' (did you mean 'scenes'?)",
        ),
        (run, (*EVAL, "--data-root", "nowhere"), "data root nowhere is not a folder"),
        (run, (*EVAL, "--split", "test"), "test.txt is missing"),
        (run, (*EVAL, "--checkpoint", "nowhere"), "no checkpoint at nowhere"),
        (run, (*EVAL, "--checkpoint", "{root}"), "is no checkpoint"),
        (run, (*EVAL, "--checkpoint", "{photo}"), "photo.jpg"),
        (run, (*EVAL, "--limit", "0"), "must be at least 1, got 0"),
        (run, (*EVAL, "--batch-size", "0"), "--batch-size must be at least 1, got 0"),
        (run, (*EVAL, "--pictures", "-1"), "--pictures must be at least 0, got -1"),
        (run, (*EVAL, "--device", "gpu"), "unknown device 'gpu'"),
        (segment_cli, (*SEGMENT[:-1],), "no classes given"),
        (segment_cli, (*SEGMENT, ""), "class 2 is empty; leave it out or name it"),
        (segment_cli, (*SEGMENT, "Cat"), "class 'Cat' stands twice"),
        (segment_cli, (*SEGMENT, "supercalifragilistic " * 9), "tokens, but the model reads only 16"),
        (segment_cli, ("nowhere.jpg", *SEGMENT), "no such image file: nowhere.jpg"),
        (segment_cli, ("nowhere/*.jpg", *SEGMENT), "no file matches 'nowhere/*.jpg'"),
        (segment_cli, ("{root}", *SEGMENT), "no picture in folder"),
        (segment_cli, (*SEGMENT[:-2], "--classes-file", "gone.txt"), "no such file of classes: gone.txt"),
        (segment_cli, (*SEGMENT[:-2], "--classes-file", "{photo}"), "is no text file of classes"),
        (segment_cli, (*SEGMENT, "dog,"), "class 2 is empty; leave it out or name it"),
        (segment_cli, (*SEGMENT, "dog,CAT"), "class 'CAT' stands twice"),
        (segment_cli, (*SEGMENT, "--background-words", "sky"), "only used with background='words'"),
        (segment_cli, (*SEGMENT, "--checkpoint", "nowhere"), "no checkpoint at nowhere"),
        (segment_cli, (*SEGMENT, "--protocol", "foto"), "unknown protocol 'foto' (did you mean 'photo'?)"),
        (
            segment_cli,
            (*SEGMENT, "--background", "threshold"),
            "the single class 'cat' every score is 1",
        ),
        (segment_cli, (*SEGMENT, "--threshold", "0.3"), "only used with background='threshold'"),
    ],
)
def test_bad_input_is_one_clear_line(
    module, arguments, message, checkpoint, scenes_root, photo, tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    filled = [each.format(export=checkpoint, root=scenes_root, photo=photo) for each in arguments]
    code, _, errors = call(module, capsys, *filled)
    assert code == 2
    assert message in one_line(errors)


def test_debug_shows_the_stack_trace(tmp_path) -> None:
    wanted = ["--checkpoint", "x", "--dataset", "scenes", "--data-root", str(tmp_path / "x")]
    with pytest.raises(ValueError, match="is not a folder"):
        run.main([*wanted, "--debug"])


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("run", "--checkpoint x --dataset ade --data-root .", "error: unknown data set 'ade'"),
        ("segment_cli", "x.jpg --checkpoint x --classes", "error: no classes given"),
        ("segment_cli", f"{__file__} --checkpoint nowhere --classes cat", "error: no checkpoint at nowhere"),
    ],
)
def test_a_real_process_ends_with_one_line_and_a_code(module, arguments, message) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"segclip.eval.{module}", *arguments.split()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith(message)
