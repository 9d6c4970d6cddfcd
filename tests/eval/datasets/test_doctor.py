"""What the doctor says of good and of broken data sets."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from segclip.data_pipelines.scenes.voc import voc_palette
from segclip.eval.datasets import doctor
from segclip.eval.datasets.doctor import check_dataset
from segclip.eval.datasets.published import PUBLISHED
from tests.eval.published_files import (
    CLASSES,
    COUNTED_FROM_ONE,
    PLACES,
    write_image,
    write_label,
    write_published,
)


@pytest.fixture
def published(tmp_path, monkeypatch):
    """(name, labels) -> root of a whole little data set: three images are all that it should have."""

    def write(name: str, labels: dict[str, np.ndarray] | None = None):
        known = replace(PUBLISHED[name], images={"val": len(labels) if labels is not None else 3})
        monkeypatch.setitem(PUBLISHED, name, known)
        write_published(tmp_path, name, labels)
        return tmp_path

    return write


def label_file(root, name: str, number: int = 0):
    place = PLACES[name]
    return root / place.label.format(place.keys[number])


def change(root, name: str, table) -> None:
    """Replace the values of every label file."""
    for number in range(3):
        path = label_file(root, name, number)
        with Image.open(path) as picture:
            label = np.array(picture)
        write_label(path, table(label))


def wrong(report) -> dict[str, str]:
    return {each.name: each.text for each in report.findings if each.status == "broken"}


@pytest.mark.parametrize("name", PLACES)
def test_nothing_is_wrong_with_good_files(published, name) -> None:
    root = published(name)
    report = check_dataset(name, root)
    assert report.ok
    assert [each for each in report.findings if each.status != "ok"] == []
    assert report.check.ok
    assert report.check.images == 3
    assert len(report.classes) == CLASSES[name]
    # The histogram adds up to all pixels, and counts from the value that the files hold.
    labels = [np.array(Image.open(label_file(root, name, number))) for number in range(3)]
    assert sum(each.pixels for each in report.classes) + report.ignored_pixels == sum(
        each.size for each in labels
    )
    assert report.classes[0].value == (name in COUNTED_FROM_ONE)
    last = report.classes[-1]
    assert last.pixels == sum((label == last.value).sum() for label in labels)
    assert last.images == sum((label == last.value).any() for label in labels)
    assert json.loads(json.dumps(report.as_dict()))["check"]["keys_sha256"] == report.check.keys_sha256


def test_a_split_with_other_images(tmp_path) -> None:
    write_published(tmp_path, "voc21")
    report = check_dataset("voc21", tmp_path)
    assert list(wrong(report)) == ["split"]
    assert "3 images in split 'val'" in wrong(report)["split"]
    assert "published are 1,449" in wrong(report)["split"]
    assert not report.check.ok
    assert "published are 1,449" in report.check.warnings[0]


def test_what_cannot_be_opened_is_one_finding(tmp_path) -> None:
    for name, message in [("voc21", "no VOCdevkit/VOC2012/JPEGImages under"), ("x.yaml", "does not exist")]:
        report = check_dataset(name, tmp_path)
        assert message in wrong(report)["files"]
        assert "docs/datasets.md" in report.findings[0].remedy
        assert report.check is None
    with pytest.raises(ValueError, match="unknown data set 'voc'"):
        check_dataset("voc", tmp_path)
    with pytest.raises(ValueError, match="voc21 needs the folder it lies in"):
        check_dataset("voc21", None)
    write_published(tmp_path, "voc21")
    (tmp_path / PLACES["voc21"].split_file).unlink()
    assert "val.txt is missing" in wrong(check_dataset("voc21", tmp_path))["files"]


def test_missing_files_are_counted(published) -> None:
    root = published("coco_object")
    label_file(root, "coco_object").unlink()
    report = check_dataset("coco_object", root)
    assert "1 of 3 are missing: " in wrong(report)["labels"]
    assert next(each for each in report.findings if each.name == "labels").remedy.startswith(
        "segclip-convert"
    )
    root = published("voc21")
    for number in (0, 2):
        (root / PLACES["voc21"].image.format(PLACES["voc21"].keys[number])).unlink()
    report = check_dataset("voc21", root)
    assert "2 of 3 are missing: " in wrong(report)["images"]
    assert "2007_000061.jpg" in wrong(report)["images"]
    # What is there is read all the same.
    assert report.classes[0].pixels > 0


def test_labels_without_an_image(published) -> None:
    root = published("ade20k150")
    write_label(label_file(root, "ade20k150").with_name("ADE_val_00000009.png"), np.ones((4, 4)))
    report = check_dataset("ade20k150", root)
    (orphans,) = [each for each in report.findings if each.name == "orphans"]
    assert orphans.status == "warning"
    assert "1 label files have no image: " in orphans.text
    assert "ADE_val_00000009" in orphans.text


def test_labels_of_other_splits_are_none_without_an_image(published) -> None:
    root = published("voc21")
    place = PLACES["voc21"]
    write_image(root / place.image.format("2007_000032"), 4, 4)
    write_label(root / place.label.format("2007_000032"), np.ones((4, 4)))
    report = check_dataset("voc21", root)
    assert [each for each in report.findings if each.status != "ok"] == []


def test_files_that_do_not_read(published) -> None:
    root = published("voc21")
    path = label_file(root, "voc21")
    with Image.open(path) as picture:
        colours = picture.convert("RGB")
    colours.save(path)
    image = root / PLACES["voc21"].image.format(PLACES["voc21"].keys[1])
    image.write_bytes(image.read_bytes()[:300])
    write_label(label_file(root, "voc21", 2), np.arange(25).reshape(5, 5) % 21)
    report = check_dataset("voc21", root)
    assert "is a RGB image; labels are class numbers" in wrong(report)["unreadable labels"]
    assert "2007_000042.jpg does not decode" in wrong(report)["unreadable images"]
    assert "2007_000061: image 17 x 14, label 5 x 5" in wrong(report)["sizes"]
    (encodings,) = [each for each in report.findings if each.name == "encodings"]
    assert "labels L (1), P (1), RGB (1)" in encodings.text


def test_classes_that_never_occur_are_named(published) -> None:
    root = published("voc21", {"2007_000033": np.array([[0, 255, 15], [7, 7, 7]])})
    report = check_dataset("voc21", root)
    assert report.ok
    (classes,) = [each for each in report.findings if each.name == "classes"]
    assert classes.status == "warning"
    assert "18 of 21 never occur: aeroplane, bicycle, bird" in classes.text
    assert {each.name: each.pixels for each in report.classes if each.pixels} == {
        "background": 1, "car": 3, "person": 1,
    }  # fmt: skip


def lost_palette(label: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(label)
    picture.putpalette(voc_palette())
    return np.array(picture.convert("L"))


@pytest.mark.parametrize(
    ("name", "table", "message"),
    [
        ("voc21", lost_palette, "brightnesses of VOC's colours, not indices: the palette was lost"),
        (
            "voc21",
            lambda label: label + (label < 21),
            "exactly one too high, so the labels seem to count from 1",
        ),
        ("voc21", lambda label: np.where(label == 20, 200, label), "200 (32 pixels), first in '2007_000033'"),
        ("ade20k150", lambda label: np.where(label == 0, 255, label - 1), "counted from 0 already"),
        ("context59", lambda label: np.where(label == 0, 255, label - 1), "counted from 0 already"),
        ("ade20k150", lambda label: label + 1, "exactly one too high, so the labels have been shifted"),
        ("coco_stuff171", lambda label: np.where(label == 170, 181, label), "look like COCO-Stuff's maps"),
        ("coco_object", lambda label: np.where(label == 80, 120, label), "look like COCO-Stuff's maps"),
        ("coco_object", lambda label: np.where(label == 0, 255, label), "have no ignored pixels"),
        (
            "cityscapes19",
            lambda label: np.where(label < 19, label + 7, 0),
            "look like labelIds, not labelTrainIds",
        ),
    ],
)
def test_labels_of_another_list(published, name, table, message) -> None:
    root = published(name)
    change(root, name, table)
    report = check_dataset(name, root)
    assert message in wrong(report)["label values"]
    (finding,) = [each for each in report.findings if each.name == "label values"]
    assert finding.remedy


def test_ignored_pixels_that_should_be_there(published) -> None:
    root = published("cityscapes19")
    change(root, "cityscapes19", lambda label: np.where(label == 255, 0, label))
    report = check_dataset("cityscapes19", root)
    assert report.ok
    (finding,) = [each for each in report.findings if each.name == "label values"]
    assert finding.status == "warning"
    assert "255 never occurs" in finding.text


def test_forgotten_reduce_zero_label(tmp_path) -> None:
    write_image(tmp_path / "images" / "val" / "a.jpg", 2, 3)
    write_label(tmp_path / "labels" / "val" / "a.png", np.array([[0, 1, 2], [2, 1, 1]]))
    path = tmp_path / "own.yaml"
    path.write_text("classes: [cat, dog]\n")
    report = check_dataset(str(path), None)
    (finding,) = [each for each in report.findings if each.name == "label values"]
    assert "exactly one too high" in finding.text
    assert "reduce_zero_label: true" in finding.remedy
    path.write_text("classes: [cat, dog]\nreduce_zero_label: true\n")
    report = check_dataset(str(path), None)
    assert report.ok
    assert (report.check.dataset, report.check.expected_images) == ("own", None)


@pytest.mark.slow
def test_several_processes_find_the_same(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(doctor, "A_TASK", 2)
    write_published(tmp_path, "voc21")
    label_file(tmp_path, "voc21", 1).write_bytes(b"no image")
    ticks = []
    one = check_dataset("voc21", tmp_path, tick=ticks.append)
    assert sum(ticks) == 3
    assert one == check_dataset("voc21", tmp_path, processes=2)
