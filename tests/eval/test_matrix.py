from __future__ import annotations

import json
import re
import shutil
from argparse import Namespace

import numpy as np
import pytest
import yaml

from segclip.eval.matrix import data_roots, one_cell
from segclip.eval.protocol import load_protocol
from segclip.eval.run import build_parser, run


def write_protocol(folder, name, **changes):
    """The scenes' protocol with sizes of the tests' network."""
    content = load_protocol("scenes").model_dump(mode="json")
    content |= {"name": name, "short_side": 24, "stride": "window", **changes}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def protocols(tmp_path):
    classes = [[f"{name} thing"] for name in "abcdefghijklmnop"]
    return [
        write_protocol(tmp_path, "plain"),
        write_protocol(tmp_path, "other_words", datasets={"scenes": {"classes": classes}}),
        write_protocol(tmp_path, "elsewhere", datasets={"voc21": {}}),
        write_protocol(tmp_path, "too_wide", window=48),
    ]


def matrix(checkpoint, root, protocols, out, *more):
    words = ["--checkpoint", checkpoint, "--dataset", "scenes", "--data-root", root, "--protocol", *protocols]
    words += ["--out", out, "--matrix", "--pictures", 0, "--device", "cpu", *more]
    assert run(build_parser().parse_args([str(word) for word in words])) == 0
    return json.loads((out / "matrix.json").read_text())


def test_every_cell_is_scored_once_and_then_read(
    checkpoint, scenes_root, protocols, tmp_path, capsys
) -> None:
    out = tmp_path / "out"
    first = matrix(checkpoint, scenes_root, protocols, out)
    shown = capsys.readouterr().out
    by_name = {cell["protocol"]: cell for cell in first["cells"]}
    assert [by_name[name]["computed"] for name in ("plain", "other_words")] == [True, True]
    for name in ("plain", "other_words"):
        result = json.loads((out / by_name[name]["result"]).read_text())
        assert result["miou"] == by_name[name]["miou"]
        assert result["protocol_sha256"] == by_name[name]["protocol_sha256"]
        assert result["weights_sha256"] == first["weights_sha256"]
        assert f"{100 * result['miou']:.1f}" in shown
    assert by_name["plain"]["miou"] != by_name["other_words"]["miou"]
    assert "- scenes under elsewhere: protocol 'elsewhere' says nothing about data set 'scenes'" in shown
    assert "- scenes under too_wide: protocol 'too_wide': window 48 is larger than the short side 24" in shown
    assert by_name["elsewhere"]["miou"] is by_name["too_wide"]["result"] is None
    row = re.search(r"^.*scenes .*$", shown.split("mean IoU %")[1], re.MULTILINE)
    assert row is not None
    assert row.group().count(" - ") == 2

    again = matrix(checkpoint, scenes_root, protocols, out)
    assert [cell["computed"] for cell in again["cells"]] == [False] * 4
    assert [cell["miou"] for cell in again["cells"]] == [cell["miou"] for cell in first["cells"]]
    assert f"read {out / 'scenes-plain' / 'result.json'}" in capsys.readouterr().out


def test_a_changed_protocol_or_image_list_is_scored_again(
    checkpoint, scenes_root, protocols, tmp_path
) -> None:
    out = tmp_path / "out"
    matrix(checkpoint, scenes_root, protocols[:1], out)
    write_protocol(tmp_path, "plain", templates=["a photo of a {}."])
    assert matrix(checkpoint, scenes_root, protocols[:1], out)["cells"][0]["computed"]
    assert not matrix(checkpoint, scenes_root, protocols[:1], out)["cells"][0]["computed"]
    split = next(scenes_root.rglob("val.txt"))
    split.write_text("".join(split.read_text().splitlines(keepends=True)[1:]))
    changed = matrix(checkpoint, scenes_root, protocols[:1], out)["cells"][0]
    assert changed["computed"]
    assert changed["images"] == 4
    (out / "scenes-plain" / "result.json").write_text("{")
    assert matrix(checkpoint, scenes_root, protocols[:1], out)["cells"][0]["computed"]


def test_studies_are_made_where_they_can_be_and_made_again_if_others_are_asked_for(
    checkpoint, scenes_root, write_voc, pictures, tmp_path, capsys
) -> None:
    """Of two data sets one has a background, which one of two protocols finds by a threshold."""
    pairs = [(f"image_{n}", pictures(24, 30, n), np.resize(range(21), (24, 30))) for n in range(3)]
    splits = write_voc(tmp_path / "voc", pairs) / "ImageSets" / "Segmentation"
    for name, numbers in (("val", (0,)), ("train", (1, 2)), ("other", (2,))):
        (splits / f"{name}.txt").write_text("".join(f"image_{number}\n" for number in numbers))
    rule = {"background": "threshold", "threshold": 0.3}
    asked = [
        write_protocol(tmp_path, "with", datasets={"voc21": rule, "scenes": {}}),
        write_protocol(tmp_path, "without", datasets={"voc21": {}, "scenes": {}}),
    ]
    for number in (1, 2):
        (tmp_path / f"words{number}.yaml").write_text(f"distractors: [ox, word {number}]")

    def cells(*more):
        root = ["--data-root", f"voc21={tmp_path / 'voc'}", scenes_root, "--dataset", "voc21", "scenes"]
        found = matrix(checkpoint, scenes_root, asked, tmp_path / "out", *root, *more)["cells"]
        assert (found[1]["miou"], found[1]["computed"]) == (None, False)
        return found, [found[place]["computed"] for place in (0, 2, 3)]

    study = ("--thresholds", "--tune-split", "train", "--vocabulary", tmp_path / "words1.yaml")
    found, computed = cells(*study)
    shown = capsys.readouterr().out
    assert "- voc21 under without: data set 'voc21' has a background class, but" in shown
    assert "scenes under with: no background threshold to study" in shown
    results = [json.loads((tmp_path / "out" / found[place]["result"]).read_text()) for place in (0, 2)]
    assert [each["thresholds"] is None for each in results] == [False, True]
    assert all(each["vocabulary"] for each in results)
    assert computed == [True, True, True]
    assert cells()[1] == cells(*study)[1] == [False, False, False]
    assert cells(*study, "--tune-split", "other")[1] == [True, False, False]
    assert cells(*study, "--tune-split", "other", "--tune-limit", 5)[1] == [False, False, False]
    assert cells("--vocabulary", tmp_path / "words2.yaml")[1] == [True, True, True]
    assert cells("--thresholds")[1] == [True, False, False]
    # Whatever is wrong with any cell is said before the first one is scored.
    before = (tmp_path / "out" / "scenes-with" / "result.json").stat().st_mtime_ns
    with pytest.raises(ValueError, match=r"trian\.txt is missing"):
        cells("--thresholds", "--tune-split", "trian", "--bootstrap", 100, "--dataset", "scenes", "voc21")
    assert (tmp_path / "out" / "scenes-with" / "result.json").stat().st_mtime_ns == before


def test_a_cell_lies_where_a_single_evaluation_does(checkpoint, scenes_root, tmp_path) -> None:
    """Also of a data set whose file has another name than it has itself, and without --out."""
    export = tmp_path / "run" / "export"
    shutil.copytree(checkpoint, export)
    folder = next(scenes_root.rglob("VOC2012"))
    names = [f"thing {number}" for number in range(16)]
    content = {"name": "plot", "classes": names, "root": str(folder), "images": "JPEGImages"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content | {"labels": "SegmentationClass"}))
    words = ["--checkpoint", export, "--dataset", tmp_path / "mine.yaml", "--pictures", 0, "--device", "cpu"]
    words = [str(each) for each in [*words, "--protocol", write_protocol(tmp_path, "plain"), "--limit", 2]]
    assert run(build_parser().parse_args(words)) == 0
    assert run(build_parser().parse_args([*words, "--matrix"])) == 0
    (cell,) = json.loads((export / "evaluation" / "matrix.json").read_text())["cells"]
    assert cell["result"] == "plot-plain-first2/result.json"
    assert not cell["computed"]


def test_two_protocols_of_one_name(checkpoint, scenes_root, protocols, tmp_path) -> None:
    (tmp_path / "b").mkdir()
    other = write_protocol(tmp_path / "b", "plain", stride=12)
    with pytest.raises(ValueError, match="two of the protocols are called 'plain'"):
        matrix(checkpoint, scenes_root, [protocols[0], other], tmp_path / "out")


def test_data_roots() -> None:
    assert data_roots(["/data"], ["voc21", "scenes"]) == {"voc21": "/data", "scenes": "/data"}
    assert data_roots(["voc21=/a", "/b"], ["voc21", "scenes"]) == {"voc21": "/a", "scenes": "/b"}
    assert data_roots([], ["mine.yaml"]) == {"mine.yaml": None}
    with pytest.raises(ValueError, match=r"no data set 'voc12' is asked for \(did you mean 'voc21'\?\)"):
        data_roots(["voc12=/a"], ["voc21"])
    with pytest.raises(ValueError, match="two folders for voc21: /a and /b"):
        data_roots(["voc21=/a", "voc21=/b"], ["voc21"])
    with pytest.raises(ValueError, match=r"two folders, /a and /b; say which .* such as voc21=/a"):
        data_roots(["/a", "/b"], ["voc21", "scenes"])


def test_several_without_matrix() -> None:
    given = Namespace(dataset=["voc21", "scenes"], protocol=["segclip"], data_root=["/data"])
    with pytest.raises(ValueError, match=r"--dataset names 2 \(voc21, scenes\); add --matrix"):
        one_cell(given)
    given = Namespace(dataset=["voc21"], protocol=["segclip", "tcl"], data_root=["/data"])
    with pytest.raises(ValueError, match=r"--protocol names 2 \(segclip, tcl\); add --matrix"):
        one_cell(given)
    one = one_cell(Namespace(dataset=["voc21"], protocol=None, data_root=["voc21=/data"]))
    assert (one.dataset, one.protocol, one.data_root) == ("voc21", None, "/data")
