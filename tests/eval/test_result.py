"""``result.json`` and back, and what is said of files that are none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segclip.eval.bootstrap import Resampling
from segclip.eval.datasets.dataset import open_dataset
from segclip.eval.evaluate import evaluate
from segclip.eval.protocol import load_protocol
from segclip.eval.result import Result

SCENES = load_protocol("scenes")


@pytest.fixture
def result(model, scenes_root) -> Result:
    return evaluate(model, open_dataset("scenes", scenes_root), SCENES, resampling=Resampling(draws=200))


def test_file_and_back(result, tmp_path) -> None:
    path = result.write(tmp_path / "deep" / "result.json")
    read = Result.read(path)
    assert read.counts is not None
    assert {each.name for each in path.parent.iterdir()} == {"result.json", read.counts.name}
    assert json.loads(path.read_text()) == json.loads(json.dumps(read.as_dict()))
    for field, value in result.as_dict().items():
        if field != "counts":
            assert read.as_dict()[field] == value, field
    counts = read.load_counts(path)
    assert (counts.rows != result.image_counts.rows).nnz == 0
    assert Result.read(path.parent).miou == result.miou  # the folder will do


def test_a_new_result_takes_the_old_counts_away(result, model, scenes_root, tmp_path) -> None:
    result.write(tmp_path / "result.json")
    (tmp_path / "other-counts-0.npz").write_bytes(b"")
    evaluate(model, open_dataset("scenes", scenes_root).first(2), SCENES).write(tmp_path / "result.json")
    read = Result.read(tmp_path / "result.json")
    assert read.counts is not None
    assert {each.name for each in tmp_path.iterdir()} == {
        "data", "other-counts-0.npz", "result.json", read.counts.name,
    }  # fmt: skip
    assert read.load_counts(tmp_path / "result.json").keys == ("scene_0", "scene_1")


def test_what_it_says_of_itself(result, scenes_root, model) -> None:
    dataset = open_dataset("scenes", scenes_root)
    assert (result.dataset, result.split, result.ranks, result.batch_size) == ("scenes", "val", 1, 32)
    assert result.dataset_check.images == 5
    assert result.dataset_check.ok
    assert [each.words for each in result.classes][:1] == [("a red circle",)]
    assert {"python", "torch", "numpy"} <= set(result.versions)
    assert result.intervals is not None
    assert (result.intervals.draws, result.intervals.level) == (200, 0.95)
    assert result.intervals.miou.low < result.miou < result.intervals.miou.high
    assert result.coverage == 1
    assert 0 < result.classes_found <= result.classes_present == 16
    same = evaluate(model, dataset, SCENES)
    assert same.data_sha256 == result.data_sha256
    assert evaluate(model, dataset.first(4), SCENES).data_sha256 != result.data_sha256
    # One other byte behind the picture: it looks the same and is another file.
    with dataset.image_paths[0].open("ab") as file:
        file.write(b"\0")
    changed = evaluate(model, dataset, SCENES)
    assert changed.confusion == result.confusion
    assert changed.data_sha256 != result.data_sha256


def test_one_image_has_no_interval(model, scenes_root) -> None:
    dataset = open_dataset("scenes", scenes_root)
    alone = evaluate(model, dataset.first(1), SCENES)
    assert alone.intervals is None
    assert all(each.iou_interval is None for each in alone.classes)
    assert evaluate(model, dataset, SCENES, resampling=Resampling(draws=0)).intervals is None


def change(**fields: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda content: {**content, **fields}


SPOILT = (
    (lambda content: "{", "is not valid JSON"),
    (lambda content: [1], "is no result of segclip-eval"),
    (lambda content: {"figures": {}}, "is no result of segclip-eval"),
    (lambda content: {"miou": 0.1, "dataset": "x"}, "is a result of format 1; this version reads format 2"),
    (change(format=9), "is a result of format 9; this version reads format 2: update segclip"),
    (change(format="x"), "is a result of format 'x'"),
    (change(miou="high"), "field 'miou': Input should be a valid number"),
    (change(mioux=1), "field 'mioux'"),
    (lambda content: {key: content[key] for key in content if key != "split"}, "field 'split': "),
    (change(confusion=[[1]]), "field 'confusion' is not 16 x 16"),
    (change(intervals={"level": 0.95}), "field 'intervals.draws'"),
)


def test_files_that_are_none(result, tmp_path) -> None:
    path = result.write(tmp_path / "result.json")
    content = json.loads(path.read_text())
    for spoil, message in SPOILT:
        spoilt = spoil(dict(content))
        path.write_text(spoilt if isinstance(spoilt, str) else json.dumps(spoilt))
        with pytest.raises(ValueError) as refused:
            Result.read(path)
        assert message in str(refused.value)
        assert "\n" not in str(refused.value)


def test_no_file_and_no_counts(result, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"no result at .*nowhere.json"):
        Result.read(tmp_path / "nowhere.json")
    path = result.write(tmp_path / "result.json")
    content = json.loads(path.read_text())

    def loaded(changed: dict[str, Any]) -> None:
        path.write_text(json.dumps(changed))
        Result.read(path).load_counts(path)

    with pytest.raises(ValueError, match="names no file with the counts of each image"):
        loaded({**content, "counts": None})
    with pytest.raises(ValueError, match="in another folder"):
        loaded({**content, "counts": {"name": "../x.npz", "sha256": ""}})
    content["confusion"][0][0] += 1
    with pytest.raises(ValueError, match="do not add up"):
        loaded(content)
    Path(tmp_path / content["counts"]["name"]).unlink()
    with pytest.raises(ValueError, match="counts of each image is missing"):
        loaded(content)
