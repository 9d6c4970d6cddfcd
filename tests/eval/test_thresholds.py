"""Background thresholds studied in one pass score as evaluations that are made with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segclip.eval.datasets.dataset import open_dataset
from segclip.eval.evaluate import evaluate, evaluate_part
from segclip.eval.protocol import load_protocol
from segclip.eval.result import ThresholdPoint
from segclip.eval.scoring import Task, score
from segclip.eval.thresholds import confusion_at, curve, study, threshold_grid, threshold_picture

SCENES = load_protocol("scenes")
SIZES = [(24, 24), (30, 41), (48, 24), (24, 26), (25, 60), (24, 24), (30, 30)]


@pytest.fixture
def voc(tmp_path, write_voc, pictures) -> Path:
    """Five images in the split `val`, two in `train`; coarse labels, some pixels ignored."""
    random = np.random.default_rng(0)
    pairs = []
    for number, (height, width) in enumerate(SIZES):
        label = np.kron(random.integers(0, 21, (height // 6 + 1, width // 6 + 1)), np.ones((6, 6), int))
        label = label[:height, :width]
        label[:2] = 255
        pairs.append((f"image_{number}", pictures(height, width, number), label))
    splits = write_voc(tmp_path / "voc", pairs) / "ImageSets" / "Segmentation"
    for name, numbers in (("val", range(5)), ("train", (5, 6)), ("both", (4, 5))):
        (splits / f"{name}.txt").write_text("".join(f"image_{number}\n" for number in numbers))
    return tmp_path / "voc"


def protocol(threshold: float, **fields):
    rule = {"background": "threshold", "threshold": threshold}
    rule |= {name: fields.pop(name) for name in ("smallest_share",) if name in fields}
    tree = {**SCENES.model_dump(), "short_side": 24, "stride": 12, **fields, "datasets": {"voc21": rule}}
    return SCENES.model_validate(tree)


CASES = [
    {},
    {"score": "softmax_times_top_k", "top_k": 3},
    {"threshold_at": "pixel"},
    {"threshold_at": "pixel", "softmax_at": "pixel"},
    {"threshold_at": "pixel", "smallest_share": 0.1},
]


@pytest.mark.parametrize("fields", CASES, ids=str)
def test_each_threshold_scores_as_if_alone(model, voc, fields) -> None:
    dataset = open_dataset("voc21", voc)
    own = protocol(0.27, **fields)
    grid = threshold_grid(dataset, own)
    assert len(grid) == 99
    part = evaluate_part(model, dataset, own, thresholds=grid)
    assert part.thresholds is not None
    plain = evaluate(model, dataset, own)
    assert part.counts.confusion().tolist() == [
        list(row) for row in plain.confusion
    ]  # the study disturbs nothing
    points = curve(part.thresholds, grid)
    assert len({point.miou for point in points}) > 3
    for number in (0, 10, 26, 40, 98):
        alone = evaluate(model, dataset, protocol(grid[number], **fields))
        assert confusion_at(part.thresholds, number).tolist() == [list(row) for row in alone.confusion]
        assert points[number].threshold == grid[number]
        assert points[number].miou == pytest.approx(alone.miou, abs=1e-12)


def test_fixed_tuned_and_oracle_are_told_apart(model, voc, tmp_path) -> None:
    dataset, train = open_dataset("voc21", voc), open_dataset("voc21", voc, "train")
    own = protocol(0.305)
    result = score(Task(dataset, own, thresholds=True, tune=train), model)
    found = result.thresholds
    assert found is not None
    assert len(found.curve) == len(found.tune_curve) == 100  # the protocol's own is none of the 99
    assert (found.fixed.threshold, found.fixed.miou) == (0.305, pytest.approx(result.miou, abs=1e-12))
    assert result.miou == evaluate(model, dataset, own).miou
    best = max(found.tune_curve, key=lambda point: point.miou)
    assert found.tuned is not None
    assert found.tuned.threshold == best.threshold
    assert found.tuned in found.curve
    assert (found.tune_split, found.tune_images) == ("train", 2)
    assert found.oracle == max(found.curve, key=lambda point: point.miou)
    alone = score(Task(train, own, thresholds=True), model).thresholds
    assert alone is not None
    assert alone.curve == found.tune_curve
    assert (alone.tuned, alone.tune_split, alone.tune_images) == (None, None, 0)
    with Image.open(threshold_picture(result, tmp_path / "thresholds.png")) as picture:
        assert min(picture.size) > 400
    threshold_picture(replace(result, thresholds=alone), tmp_path / "thresholds.png")


def test_a_split_with_nothing_to_tune_on(model, voc) -> None:
    train = open_dataset("voc21", voc, "train")
    for path in train.image_paths:
        path.write_bytes(b"broken")
    task = Task(open_dataset("voc21", voc), protocol(0.3), on_error="skip", thresholds=True, tune=train)
    with pytest.raises(ValueError, match="no labelled pixel of split 'train' of 'voc21' could be scored"):
        score(task, model)


def test_of_equally_good_thresholds_the_lowest_is_taken() -> None:
    on_result = [ThresholdPoint(0.1, 0.3), ThresholdPoint(0.2, 0.5), ThresholdPoint(0.3, 0.5)]
    on_tune = [ThresholdPoint(0.1, 0.4), ThresholdPoint(0.2, 0.4), ThresholdPoint(0.3, 0.1)]
    found = study(0.3, on_result, on_tune, tune_split="train", tune_images=1)
    assert found.fixed == on_result[2]
    assert found.oracle == on_result[1]
    assert found.tuned == on_result[0]


def test_what_cannot_be_studied(voc, scenes_root) -> None:
    dataset = open_dataset("voc21", voc)
    with pytest.raises(
        ValueError, match=r"has no background threshold for data set 'scenes' \(its background rule is"
    ):
        Task(open_dataset("scenes", scenes_root), SCENES, thresholds=True)
    with pytest.raises(ValueError, match="the classes that are left depend on the threshold"):
        Task(dataset, protocol(0.3, smallest_share=0.1), thresholds=True)
    with pytest.raises(ValueError, match="give --thresholds as well"):
        Task(dataset, protocol(0.3), tune=open_dataset("voc21", voc, "train"))
    with pytest.raises(
        ValueError, match=r"1 images of split 'both' are scored as well \(first: image_4.jpg\)"
    ):
        Task(dataset, protocol(0.3), thresholds=True, tune=open_dataset("voc21", voc, "both"))
