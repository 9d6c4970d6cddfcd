"""Two results on the same images: what differs by more than chance, and what cannot be compared."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from segclip.eval import run
from segclip.eval.compare import compare
from segclip.eval.conclude import Part, conclude
from segclip.eval.counts import ImageCounts, columns
from segclip.eval.datasets.dataset import SegmentationDataset
from segclip.eval.protocol import load_protocol
from segclip.eval.result import Result

CLASSES = ("one", "two", "three")
IMAGES = 60
PROTOCOL = load_protocol("scenes")


def dataset(images: int = IMAGES, name: str = "scenes", split: str = "val") -> SegmentationDataset:
    keys = tuple(f"image_{number:03d}" for number in range(images))
    paths = tuple(Path(key) for key in keys)
    words = tuple((each,) for each in CLASSES)
    return SegmentationDataset(name, CLASSES, words, False, keys, paths, paths, split=split)


def own_protocol(**fields):
    tree = PROTOCOL.model_dump(mode="json")
    tree["datasets"] = {name: {"background": "none"} for name in ("scenes", "voc21")}
    return PROTOCOL.model_validate(tree | fields)


def scored(model, found: float, seed: int, on: SegmentationDataset | None = None, **fields) -> Result:
    """A result in which a share of pixels is right, images being easy or hard for everybody alike."""
    on = on or dataset()
    images, size = len(on.keys), len(CLASSES)
    hard = np.random.default_rng(99).uniform(0.2, 1, images)  # the same images are hard at each seed
    random = np.random.default_rng(seed)
    rows = np.zeros((images, columns(size)), dtype=np.int64)
    for number in range(images):
        for label in range(size):
            right = random.binomial(400, min(found * hard[number], 1))
            rows[number, label * size + label] = right
            rows[number, label * size + (label + 1) % size] = 400 - right
    counts = ImageCounts(on.keys, size, csr_matrix(rows))
    part = Part(counts, dict.fromkeys(on.keys, fields.pop("digest", "0")), {}, 1.0, "cpu", 32)
    return conclude([part], model, on, own_protocol(**fields))


def pair(first: Result, second: Result):
    return (first, first.image_counts), (second, second.image_counts)


def test_pairing_tells_what_single_intervals_cannot(model) -> None:
    first, second = scored(model, 0.70, 1), scored(model, 0.73, 2)
    found = compare(*pair(first, second))
    assert first.intervals is not None
    assert second.intervals is not None
    assert first.intervals.miou.high > second.intervals.miou.low  # by themselves they overlap
    assert found.difference == second.miou - first.miou
    assert found.interval is not None
    assert 0 < found.interval.low < found.difference < found.interval.high
    assert (found.sign, found.images, found.protocols) == ("+", IMAGES, None)
    assert found.better > 0.99
    for each, one, two in zip(found.classes, first.classes, second.classes, strict=True):
        assert each.difference == pytest.approx((two.iou or 0) - (one.iou or 0))
        assert each.interval is not None
        assert each.interval.low < each.difference < each.interval.high
    back = compare(*pair(second, first))
    assert (back.sign, back.difference) == ("-", -found.difference)
    assert back.interval is not None
    assert back.interval.low == pytest.approx(-found.interval.high)


def test_nothing_differs_from_itself(model) -> None:
    one = scored(model, 0.7, 1)
    same = compare(*pair(one, one))
    assert same.interval is not None
    assert (same.difference, same.interval.low, same.interval.high) == (0, 0, 0)
    assert (same.sign, same.better) == ("=", 0.5)


def test_chance_is_not_taken_for_a_difference(model) -> None:
    """Of twenty pairs that differ by chance alone, a 95 % interval may miss 0 in a few."""
    signs = [
        compare(*pair(scored(model, 0.7, n), scored(model, 0.7, 100 + n)), draws=200).sign for n in range(20)
    ]
    assert signs.count("=") >= 16


def test_what_cannot_be_compared(model) -> None:
    one = scored(model, 0.7, 1)
    for other, message in (
        (scored(model, 0.7, 1, dataset(name="voc21")), "different data sets: 'scenes' and 'voc21'"),
        (scored(model, 0.7, 1, dataset(split="train")), "different splits: 'val' and 'train'"),
        (scored(model, 0.7, 1, dataset(59)), "different images: 60 and 59, 1 of them in one only (first: 'image_059')"),
        (scored(model, 0.7, 1, digest="1"), "images of the same names but other files"),
        (scored(model, 0.7, 1, name="other"), "different protocols: 'scenes' and 'other'; --anyway compares them"),
        (scored(model, 0.7, 1, templates=["a {}."]), "different protocols: two of the name 'scenes'"),
        (replace(one, classes=one.classes[:2]), "different classes: 3 and 2"),
    ):  # fmt: skip
        with pytest.raises(ValueError) as refused:
            compare(*pair(one, other))
        assert message in str(refused.value)
        assert "\n" not in str(refused.value)
    found = compare(*pair(one, scored(model, 0.7, 1, name="other")), any_protocol=True)
    assert found.protocols == ("scenes", "other")
    with pytest.raises(ValueError, match="needs bootstrap draws"):
        compare(*pair(one, one), draws=0)


def called(capsys, *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        run.main([str(word) for word in words])
    out, err = capsys.readouterr()
    return int(end.value.code or 0), out, err


def test_command_line(model, tmp_path, capsys) -> None:
    scored(model, 0.70, 1).write(tmp_path / "a" / "result.json")
    scored(model, 0.73, 2).write(tmp_path / "b" / "result.json")
    scored(model, 0.73, 2, name="other").write(tmp_path / "c" / "result.json")
    a, b, c = tmp_path / "a", tmp_path / "b" / "result.json", tmp_path / "c"
    code, printed, _ = called(capsys, "compare", a, b, "--json", tmp_path / "difference.json")
    assert code == 0
    assert "B is better by more than chance" in printed
    assert "three" in printed
    assert json.loads((tmp_path / "difference.json").read_text())["sign"] == "+"
    code, printed, _ = called(capsys, "compare", a, c, "--anyway")
    assert code == 0
    assert "the protocols differ (scenes and other)" in printed
    next(tmp_path.joinpath("b").glob("*.npz")).unlink()
    for words, message in (
        ((a, c), "--anyway compares them"),
        ((a, tmp_path / "nowhere"), "no result at"),
        ((a, b), "counts of each image is missing"),
        ((a, a, "--bootstrap", 7), "0 (no intervals) or 100 to 1,000,000, got 7"),
        ((a, a, "--confidence", 95), "got 95"),
    ):
        code, printed, errors = called(capsys, "compare", *words)
        assert (code, printed) == (2, "")
        assert errors.startswith("error: ")
        assert message in errors
        assert len(errors.strip().splitlines()) == 1
