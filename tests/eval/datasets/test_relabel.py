"""Converters that replace the values of label files."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from segclip.eval.datasets.class_lists import COCO_NAMES, COCO_OBJECT, COCO_STUFF
from segclip.eval.datasets.convert_cli import RELABELLED, build_parser, main
from segclip.eval.datasets.dataset import open_dataset
from segclip.eval.datasets.relabel import RELABELLINGS, relabel_set
from tests.eval.published_files import write_image, write_label

KEYS = ("000000000139", "000000000285")
NEVER = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)


@pytest.fixture
def stuff(tmp_path):
    """COCO-Stuff as it is downloaded: every value that occurs, and unlabelled pixels."""
    values = [value for value in range(182) if value not in NEVER] + [255]
    for number, key in enumerate(KEYS):
        label = np.resize(np.roll(values, number), (14, 16))
        write_image(tmp_path / "images" / "val2017" / f"{key}.jpg", *label.shape)
        write_label(tmp_path / "annotations" / "val2017" / f"{key}.png", label)
    return tmp_path


def raw(stuff) -> np.ndarray:
    with Image.open(stuff / "annotations" / "val2017" / f"{KEYS[0]}.png") as picture:
        return np.array(picture)


def test_coco_object_by_name(stuff) -> None:
    (done,) = relabel_set("coco-object", stuff)
    assert (done.name, done.written, done.there) == ("coco-object val", 2, 0)
    dataset = open_dataset("coco_object", stuff)
    label, source = dataset[0].label_HW, raw(stuff)
    for value in np.unique(source):
        name = COCO_NAMES[value] if value < 91 else "background"
        (written,) = np.unique(label[source == value])
        assert dataset.classes[written] == name, value
    assert 255 not in label
    assert {dataset.classes[value] for value in np.unique(label)} == {"background", *COCO_OBJECT}


def test_coco_stuff_by_name(stuff) -> None:
    relabel_set("coco-stuff", stuff)
    label, source = open_dataset("coco_stuff171", stuff)[0].label_HW, raw(stuff)
    for value in np.unique(source[source != 255]):
        (written,) = np.unique(label[source == value])
        assert COCO_STUFF[written] == COCO_NAMES[value]
    assert (label[source == 255] == 255).all()


def test_cityscapes(tmp_path) -> None:
    place = tmp_path / "gtFine" / "val" / "lindau" / "lindau_000000_000019"
    write_image(tmp_path / "leftImg8bit" / "val" / "lindau" / "lindau_000000_000019_leftImg8bit.png", 6, 6)
    source = np.arange(36).reshape(6, 6).clip(max=33)
    write_label(place.with_name(place.name + "_gtFine_labelIds.png"), source)
    write_label(place.with_name(place.name + "_gtFine_instanceIds.png"), source)
    (done,) = relabel_set("cityscapes", tmp_path)
    assert done.written == 1
    dataset = open_dataset("cityscapes19", tmp_path)
    label = dataset[0].label_HW
    names = {int(value): dataset.classes[label[source == value][0]] for value in (7, 8, 11, 19, 24, 26, 33)}
    assert names == {
        7: "road", 8: "sidewalk", 11: "building", 19: "traffic light", 24: "person", 26: "car", 33: "bicycle",
    }  # fmt: skip
    assert set(np.unique(label)) == {*range(19), 255}
    for ignored in (0, 6, 9, 10, 14, 18, 29, 30):
        assert (label[source == ignored] == 255).all()


def test_converted_files_are_left_alone(stuff) -> None:
    relabel_set("coco-stuff", stuff)
    relabel_set("coco-object", stuff)  # does not take those of coco-stuff for downloaded ones
    target = stuff / "annotations" / "val2017" / f"{KEYS[1]}_instanceTrainIds.png"
    target.unlink()
    (done,) = relabel_set("coco-object", stuff)
    assert (done.written, done.there) == (1, 1)
    assert target.is_file()
    (done,) = relabel_set("coco-object", stuff, ["val"], overwrite=True)
    assert (done.written, done.there) == (2, 0)
    assert len(list((stuff / "annotations" / "val2017").iterdir())) == 6


def test_wrong_values_are_refused(stuff) -> None:
    path = stuff / "annotations" / "val2017" / f"{KEYS[1]}.png"
    write_label(path, np.array([[0, 11]]))
    with pytest.raises(
        ValueError, match=r"000000000285\.png holds 11, which is no label .* of coco-object: has it"
    ):
        relabel_set("coco-object", stuff)
    assert not list(stuff.rglob("*.tmp"))
    assert not path.with_name(f"{KEYS[1]}_instanceTrainIds.png").exists()
    Image.fromarray(np.full((4, 4), 300, np.uint16)).save(path)
    with pytest.raises(ValueError, match="holds 300, which"):
        relabel_set("coco-object", stuff)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path)
    with pytest.raises(ValueError, match=r"is a RGB image; labels are class numbers"):
        relabel_set("coco-object", stuff)


def test_missing_input(stuff, tmp_path_factory) -> None:
    with pytest.raises(ValueError, match=r"split 'train' has no folder in .*; there are: val"):
        relabel_set("coco-object", stuff, ["train"])
    with pytest.raises(ValueError, match="--processes must be at least 1, got 0"):
        relabel_set("coco-object", stuff, processes=0)
    for key in KEYS:
        (stuff / "annotations" / "val2017" / f"{key}.png").unlink()
    with pytest.raises(
        ValueError, match=r"no downloaded label file \(NAME\.png\) in .*: unzip stuffthingmaps"
    ):
        relabel_set("coco-object", stuff)
    (stuff / "annotations" / "val2017").rmdir()
    with pytest.raises(ValueError, match=r"there is no annotations/val2017 in .*: unzip stuffthingmaps"):
        relabel_set("coco-object", stuff)
    with pytest.raises(ValueError, match="no coco_stuff164k/images under"):
        relabel_set("coco-object", tmp_path_factory.mktemp("empty"))


def test_the_command(stuff, capsys) -> None:
    assert set(RELABELLED) == set(RELABELLINGS)
    with pytest.raises(SystemExit) as ended:
        main(["coco-object", "--root", str(stuff), "--processes", "1"])
    assert ended.value.code == 0
    assert "coco-object val: 2 label files written, 0 were there" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["context", "--root", str(stuff), "--json", str(stuff / "x.json")])
    assert ended.value.code == 2
    assert "error: no VOCdevkit/VOC2010/JPEGImages under" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        build_parser().parse_args(["coco"])


@pytest.mark.slow
def test_several_processes_write_the_same(tmp_path) -> None:
    """More files than one task takes, so that two processes share them."""
    random = np.random.default_rng(0)
    folder = tmp_path / "annotations" / "val2017"
    (tmp_path / "images").mkdir()
    values = np.array([value for value in range(182) if value not in NEVER])
    for number in range(70):
        write_label(folder / f"{number:012}.png", random.choice(values, (4, 5)))
    (done,) = relabel_set("coco-stuff", tmp_path, processes=2)
    assert done.written == 70
    first = {path.name: path.read_bytes() for path in folder.glob("*_labelTrainIds.png")}
    assert len(first) == 70
    relabel_set("coco-stuff", tmp_path, processes=1, overwrite=True)
    assert first == {path.name: path.read_bytes() for path in folder.glob("*_labelTrainIds.png")}
