from __future__ import annotations

import json
import time
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from rich.console import Console

from segclip.eval.datasets.dataset import Sample, SegmentationDataset, open_dataset
from segclip.eval.evaluate import build_scorer, evaluate, predict_dataset
from segclip.eval.protocol import load_protocol
from segclip.eval.reports.outputs import write_outputs
from segclip.eval.reports.pictures import spread
from segclip.eval.reports.terminal import class_table, print_result, summary_line

SCENES = load_protocol("scenes")


def test_score_equals_counting_by_hand(model, scenes_root) -> None:
    dataset = open_dataset("scenes", scenes_root)
    result = evaluate(model, dataset, SCENES)
    hit, union = np.zeros(16, int), np.zeros(16, int)
    for sample, prediction in predict_dataset(model, dataset, SCENES):
        found = prediction.labels().numpy()
        assert found.shape == sample.label_HW.shape
        counted = sample.label_HW != 255
        for label in range(16):
            truth, mine = sample.label_HW[counted] == label, found[counted] == label
            hit[label] += (truth & mine).sum()
            union[label] += (truth | mine).sum()
    assert result.miou == pytest.approx((hit / union).mean())
    assert [each.iou for each in result.classes] == pytest.approx((hit / union).tolist())
    assert result.accuracy == pytest.approx(hit.sum() / result.pixels)
    assert result.images == 5
    assert result.pixels == sum(int((dataset[n].label_HW != 255).sum()) for n in range(5))
    assert len({each.predicted_pixels for each in result.classes}) > 3  # the model is lively enough to count


def test_batch_size_and_limit(model, scenes_root) -> None:
    dataset = open_dataset("scenes", scenes_root)
    assert (
        evaluate(model, dataset, SCENES, batch_size=1).confusion == evaluate(model, dataset, SCENES).confusion
    )
    assert evaluate(model, dataset.first(2), SCENES).images == 2


class _Noting(SegmentationDataset):
    """Notes what is read of it."""

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        self.__dict__.setdefault("read", []).append(index)
        return sample


def test_of_large_images_few_are_read_ahead(model, scenes_root, monkeypatch) -> None:
    """A label map of 12 million pixels takes 96 MB: sixty-four of them would fill most machines."""
    plain = open_dataset("scenes", scenes_root).pick([0, 1, 2, 3, 4] * 4)
    dataset = _Noting(**{each.name: getattr(plain, each.name) for each in fields(plain)})
    monkeypatch.setattr("segclip.eval.evaluate._PIXELS_AHEAD", 1000)
    pairs = predict_dataset(model, dataset, SCENES, batch_size=1)
    for number in range(1, 4):
        next(pairs)
        time.sleep(0.1)
        assert len(dataset.__dict__["read"]) <= number + 2
    pairs.close()


def test_the_models_mode_is_left_as_it_was(model, scenes_root) -> None:
    dataset = open_dataset("scenes", scenes_root).first(1)
    quiet = evaluate(model, dataset, SCENES)
    modes = []
    watch = model.vision.register_forward_hook(lambda module, *_: modes.append(module.training))
    model.train()
    try:
        assert evaluate(model, dataset, SCENES).confusion == quiet.confusion
        assert model.training
        assert modes
        assert not any(modes)
    finally:
        watch.remove()
        model.eval()


def test_result_says_what_it_was_made_from_and_survives_json(model, scenes_root, tmp_path) -> None:
    result = evaluate(model, open_dataset("scenes", scenes_root), SCENES, checkpoint="runs/x/export")
    content = json.loads(result.write(tmp_path / "deep" / "result.json").read_text())
    assert content["protocol"]["name"] == "scenes"
    assert content["protocol_sha256"] == SCENES.sha256
    assert len(content["weights_sha256"]) == 64
    assert content["checkpoint"] == "runs/x/export"
    assert np.array(content["confusion"]).sum() == content["pixels"]
    assert "mIoU" in summary_line(result)
    assert class_table(result).row_count == 16
    # Brackets in a name are no mark-up, and the table fits a terminal of 80 columns.
    bracketed = replace(result, classes=(replace(result.classes[0], name="[red]"), *result.classes[1:]))
    with (console := Console(width=80)).capture() as printed:
        print_result(console, bracketed)
    assert "[red]" in printed.get()
    assert "95 %" in printed.get()
    assert "…" not in printed.get()
    with torch.no_grad():
        model.logit_scale += 1
        changed = evaluate(model, open_dataset("scenes", scenes_root).first(1), SCENES)
        model.logit_scale -= 1
    assert changed.weights_sha256 != content["weights_sha256"]


def test_broken_images_stop_or_are_named(model, scenes_root) -> None:
    dataset = open_dataset("scenes", scenes_root)
    dataset.image_paths[1].write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"scene_1\.jpg does not decode as an image"):
        evaluate(model, dataset, SCENES)
    result = evaluate(model, dataset, SCENES, on_error="skip")
    assert result.images == 4
    assert len(result.skipped) == 1
    assert result.skipped[0].startswith("scene_1: ")
    assert [each.key for each in result.per_image] == ["scene_0", "scene_2", "scene_3", "scene_4"]


def test_nothing_readable_is_an_error(model, scenes_root) -> None:
    dataset = open_dataset("scenes", scenes_root).first(1)
    dataset.image_paths[0].write_bytes(b"broken")
    with pytest.raises(ValueError, match="no labelled pixel of data set 'scenes' could be scored; first"):
        evaluate(model, dataset, SCENES, on_error="skip")


def test_background_rule_and_class_list_must_fit(model, tmp_path, write_voc, pictures, scenes_root) -> None:
    write_voc(tmp_path / "voc", [("a", pictures(24, 24), np.full((24, 24), 20))])
    voc = open_dataset("voc21", tmp_path / "voc")
    scenes = open_dataset("scenes", scenes_root)

    def with_rule(name, **rule):
        return SCENES.model_validate({**SCENES.model_dump(), "datasets": {name: rule}})

    with pytest.raises(ValueError, match="has a background class, but protocol 'scenes' gives no"):
        evaluate(model, voc, with_rule("voc21"))
    with pytest.raises(ValueError, match="which has no background class"):
        evaluate(model, scenes, with_rule("scenes", background="threshold", threshold=0.5))
    with pytest.raises(ValueError, match="names 2 classes for data set 'scenes', which has 16"):
        evaluate(model, scenes, with_rule("scenes", classes=("a", "b")))
    threshold = {"background": "threshold", "threshold": 0.5}
    words = {"background": "words", "background_words": ("sky",)}
    # The background of a threshold is no word: 20 words for 21 labels.
    scorer = build_scorer(model, voc, with_rule("voc21", **threshold))
    assert (len(scorer.text_NE), scorer.labels) == (20, 21)
    for rule in (threshold, words):
        assert len(evaluate(model, voc, with_rule("voc21", **rule)).classes) == 21


def test_pictures_are_written(model, scenes_root, tmp_path) -> None:
    from PIL import Image

    dataset = open_dataset("scenes", scenes_root)
    result = evaluate(model, dataset, SCENES)
    written = write_outputs(tmp_path / "out", model, dataset, SCENES, result, count=3)
    assert set(written) == {"result", "counts", "confusion", "overlays", "worst", "report"}
    for name in ("confusion", "overlays", "worst"):
        with Image.open(written[name]) as picture:
            assert min(picture.size) > 300
    # Nothing of an earlier result is left beside a later one.
    (tmp_path / "out" / "thresholds.png").write_bytes(b"of another evaluation")
    few = write_outputs(tmp_path / "out", model, dataset, SCENES, result, count=0)
    assert set(few) == {"result", "counts", "confusion", "report"}
    assert set((tmp_path / "out").iterdir()) == set(few.values())


@pytest.mark.parametrize(("total", "count"), [(500, 8), (3, 8), (1, 1), (0, 4)])
def test_spread(total, count) -> None:
    places = spread(total, count)
    assert len(places) == min(total, count) == len(set(places))
    assert all(0 <= place < total for place in places)
