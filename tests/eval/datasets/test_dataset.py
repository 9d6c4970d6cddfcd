from __future__ import annotations

import json
import re

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from segclip.eval.datasets.check import quick_check
from segclip.eval.datasets.class_lists import COCO_NAMES, COCO_OBJECT, COCO_STUFF, CONTEXT, coco_train_ids
from segclip.eval.datasets.dataset import open_dataset, reduce_zero_label
from segclip.eval.datasets.published import DATASETS, PUBLISHED
from tests.eval.published_files import (
    CLASSES,
    COUNTED_FROM_ONE,
    PLACES,
    write_image,
    write_label,
    write_published,
)


def folder_of(root):
    return root / "VOCdevkit" / "VOC2012"


def test_scenes_are_read_as_written(scenes_root, scene_classes) -> None:
    dataset = open_dataset("scenes", scenes_root)
    assert dataset.classes == tuple(scene_classes)
    assert len(dataset) == 5
    sample = dataset[1]
    assert sample.key == "scene_1"
    assert sample.image_HW3.shape == (30, 41, 3)
    assert sample.label_HW.dtype == np.int64
    assert (sample.label_HW[:2] == 255).all()
    assert set(np.unique(sample.label_HW)) <= {*range(16), 255}


def test_the_root_may_be_any_of_the_three_folders(scenes_root) -> None:
    for root in (scenes_root, scenes_root / "VOCdevkit", folder_of(scenes_root)):
        assert len(open_dataset("scenes", root)) == 5


def test_voc21_has_its_classes_built_in(tmp_path, write_voc, pictures) -> None:
    write_voc(tmp_path, [("a", pictures(8, 9), np.full((8, 9), 20))])
    dataset = open_dataset("voc21", tmp_path)
    assert len(dataset.classes) == 21
    assert dataset.has_background
    assert dataset[0].label_HW.max() == 20


def test_first_and_pick(scenes_root) -> None:
    dataset = open_dataset("scenes", scenes_root)
    assert dataset.first(2).keys == ("scene_0", "scene_1")
    assert dataset.first(None) is dataset
    assert len(dataset.first(99)) == 5
    assert dataset.pick([4, 0]).keys == ("scene_4", "scene_0")
    assert dataset.pick([4]).label_paths == (dataset.label_paths[4],)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        dataset.first(0)


def test_unknown_name_offers_the_nearest(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"unknown data set 'scene' \(did you mean 'scenes'\?\)"):
        open_dataset("scene", tmp_path)
    with pytest.raises(ValueError, match=r"unknown data set 'ade20k'.*known: voc21, voc20, .*a \.yaml file"):
        open_dataset("ade20k", tmp_path)
    assert set(DATASETS) == {*PLACES, "scenes"}


def test_missing_folders_and_files(scenes_root, tmp_path) -> None:
    with pytest.raises(ValueError, match="is not a folder"):
        open_dataset("scenes", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no VOCdevkit/VOC2012/JPEGImages under"):
        open_dataset("scenes", tmp_path / "empty")
    with pytest.raises(ValueError, match=r"split file .*trial\.txt is missing"):
        open_dataset("scenes", scenes_root, split="trial")
    (folder_of(scenes_root) / "classes.json").unlink()
    with pytest.raises(ValueError, match=r"classes\.json with the class list is missing"):
        open_dataset("scenes", scenes_root)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "is not valid JSON"),
        ("{}", "must hold a list of class names"),
        ("[]", "must hold a list of class names"),
        (json.dumps(["cat", " "]), "class 1 has an empty name"),
        (json.dumps(["cat", "Cat"]), "class name 'Cat' stands twice"),
    ],
)
def test_bad_class_lists(scenes_root, content, message) -> None:
    (folder_of(scenes_root) / "classes.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        open_dataset("scenes", scenes_root)


def test_split_file_with_faults(scenes_root) -> None:
    split = folder_of(scenes_root) / "ImageSets" / "Segmentation" / "val.txt"
    split.write_text("\n\n")
    with pytest.raises(ValueError, match=r"val\.txt is empty"):
        open_dataset("scenes", scenes_root)
    split.write_text("scene_0\nscene_1\nscene_0\n")
    with pytest.raises(ValueError, match="names 'scene_0' twice"):
        open_dataset("scenes", scenes_root)
    split.write_text("scene_0\nscene_9\n")
    with pytest.raises(ValueError, match="image 'scene_9' of split 'val' is missing"):
        open_dataset("scenes", scenes_root)


def test_image_without_label(scenes_root) -> None:
    (folder_of(scenes_root) / "SegmentationClass" / "scene_3.png").unlink()
    with pytest.raises(ValueError, match=r"image 'scene_3' has no label: .*scene_3\.png is missing"):
        open_dataset("scenes", scenes_root)


def test_label_of_another_size(scenes_root) -> None:
    Image.fromarray(np.zeros((10, 11), np.uint8)).save(
        folder_of(scenes_root) / "SegmentationClass" / "scene_0.png"
    )
    with pytest.raises(ValueError, match="scene_0: the image is 24 x 24 but its label is 11 x 10 pixels"):
        open_dataset("scenes", scenes_root)[0]


def test_label_outside_the_class_list(scenes_root) -> None:
    Image.fromarray(np.full((24, 24), 16, np.uint8)).save(
        folder_of(scenes_root) / "SegmentationClass" / "scene_0.png"
    )
    with pytest.raises(ValueError, match=r"scene_0: label value 16 is outside the class list \(0\.\.15"):
        open_dataset("scenes", scenes_root)[0]


@pytest.mark.parametrize("name", PLACES)
def test_published_sets_are_read_from_their_folders(tmp_path, name) -> None:
    written = write_published(tmp_path, name)
    dataset = open_dataset(name, tmp_path)
    assert dataset.name == name
    assert len(dataset.classes) == CLASSES[name]
    assert dataset.words == tuple((each,) for each in dataset.classes)
    assert dataset.has_background == (dataset.classes[0] == "background")
    assert dataset.has_background == (name in ("voc21", "context60", "coco_object"))
    assert dataset.keys == PLACES[name].keys
    seen = set()
    for sample, raw in zip(dataset, written.values(), strict=True):
        assert sample.image_HW3.shape == (*raw.shape, 3)
        if name in COUNTED_FROM_ONE:
            for value in np.unique(raw):
                expected = 255 if value in (0, 255) else value - 1
                assert (sample.label_HW[raw == value] == expected).all()
        else:
            np.testing.assert_array_equal(sample.label_HW, raw)
        seen |= set(np.unique(sample.label_HW)) - {255}
    assert seen == set(range(CLASSES[name]))
    assert "3 images, but" in quick_check(dataset).warnings[0]


@pytest.mark.parametrize("name", PLACES)
def test_every_folder_above_the_data_is_a_root(tmp_path, name) -> None:
    write_published(tmp_path, name)
    (inner,) = tmp_path.iterdir()
    roots = [
        tmp_path,
        inner,
        *((inner / f"VOC{year}") for year in (2010, 2012)),
        inner / "ADEChallengeData2016",
    ]
    opened = [open_dataset(name, root).image_paths for root in roots if root.is_dir()]
    assert len(opened) == (2 if name.startswith(("coco", "city")) else 3)
    assert len(set(opened)) == 1


def test_published_counts() -> None:
    counts = {name: known.images["val"] for name, known in PUBLISHED.items()}
    assert counts == {
        "voc21": 1449, "voc20": 1449, "context60": 5104, "context59": 5104, "coco_object": 5000,
        "coco_stuff171": 5000, "ade20k150": 2000, "cityscapes19": 500,
    }  # fmt: skip


def test_class_lists_by_name() -> None:
    """What tells one order of these lists from another."""
    voc21, context60 = PUBLISHED["voc21"].classes, PUBLISHED["context60"].classes
    assert (voc21[0], voc21[1], voc21[15], voc21[20]) == ("background", "aeroplane", "person", "tvmonitor")
    assert PUBLISHED["voc20"].classes == voc21[1:]
    assert context60 == ("background", *CONTEXT)
    assert list(CONTEXT) == sorted(CONTEXT)
    assert (CONTEXT[1], CONTEXT[36], CONTEXT[58]) == ("bag", "person", "wood")
    ade = PUBLISHED["ade20k150"].classes
    assert (ade[0], ade[7], ade[56], ade[136], ade[149]) == (
        "wall",
        "bed",
        "pool table",
        "traffic light",
        "flag",
    )
    cityscapes = PUBLISHED["cityscapes19"].classes
    assert (cityscapes[0], cityscapes[6], cityscapes[18]) == ("road", "traffic light", "bicycle")
    for known in PUBLISHED.values():
        assert len(set(known.classes)) == len(known.classes)
        assert all(each == each.strip() for each in known.classes)


def test_coco_train_ids_by_name() -> None:
    ids = coco_train_ids()
    assert len(COCO_NAMES) == 182
    # Files hold the official id - 1: person 1, stop sign 13, toothbrush 90, banner 92, wood 182.
    for official, name, train_id in [
        (1, "person", 0), (11, "fire hydrant", 10), (13, "stop sign", 11), (27, "backpack", 24), (90, "toothbrush", 79),
        (92, "banner", 80), (110, "desk-stuff", 98), (182, "wood", 170),
    ]:  # fmt: skip
        assert COCO_NAMES[official - 1] == name
        assert ids[official - 1] == train_id
        assert COCO_STUFF[train_id] == name
    without = {number for number in range(1, 183) if number - 1 not in ids}
    assert without == {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}
    assert list(ids.values()) == list(range(171))
    assert len(COCO_OBJECT) == 80
    assert COCO_STUFF[:80] == COCO_OBJECT
    assert (PUBLISHED["coco_object"].classes[0], PUBLISHED["coco_object"].classes[80]) == (
        "background",
        "toothbrush",
    )


@given(arrays(np.int64, array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.integers(0, 255)))
def test_reduce_zero_label_is_that_of_the_field(raw) -> None:
    label = reduce_zero_label(raw)
    # mmsegmentation: 0 -> 255, subtract 1, 254 -> 255, on 8-bit values. A class 254 is where both would differ
    # from what one wants; no set has 255 classes.
    theirs = raw.astype(np.uint8)
    theirs[theirs == 0] = 255
    theirs = theirs - 1
    theirs[theirs == 254] = 255
    np.testing.assert_array_equal(label, theirs)
    named = (raw > 0) & (raw < 255)
    np.testing.assert_array_equal(label[named] + 1, raw[named])
    assert (label[~named] == 255).all()
    assert label.dtype == np.int64


def test_a_published_set_without_its_converted_labels(tmp_path) -> None:
    write_published(tmp_path, "coco_stuff171")
    with pytest.raises(
        ValueError, match=r"'000000000139' has no label.*and 2 more\).*segclip-convert coco-object --root"
    ):
        open_dataset("coco_object", tmp_path)


def test_a_split_that_is_not_there(tmp_path) -> None:
    write_published(tmp_path, "ade20k150")
    with pytest.raises(
        ValueError, match=r"split 'train' of ade20k150 is missing: .*training; there are: validation"
    ):
        open_dataset("ade20k150", tmp_path, "train")
    (tmp_path / "ade" / "ADEChallengeData2016" / "images" / "training").mkdir()
    with pytest.raises(ValueError, match=r"no image \(NAME\.jpg\) in .*training"):
        open_dataset("ade20k150", tmp_path, "train")
    with pytest.raises(ValueError, match=r"no coco_stuff164k/images under .*is this coco_object\?"):
        open_dataset("coco_object", tmp_path)
    with pytest.raises(ValueError, match="voc21 needs the folder it lies in: --data-root"):
        open_dataset("voc21")


def test_colour_labels_and_broken_files_are_refused(tmp_path) -> None:
    write_published(tmp_path, "voc21")
    dataset = open_dataset("voc21", tmp_path)
    with Image.open(dataset.label_paths[0]) as picture:
        colours = picture.convert("RGB")
    colours.save(dataset.label_paths[0])
    with pytest.raises(ValueError, match=r"2007_000033\.png is a RGB image; labels are class numbers"):
        dataset[0]
    content = dataset.image_paths[1].read_bytes()
    dataset.image_paths[1].write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"2007_000042\.jpg does not decode as an image"):
        dataset[1]


def test_values_outside_are_told_as_the_file_holds_them(tmp_path) -> None:
    write_published(tmp_path, "ade20k150", {"x": np.array([[0, 150], [1, 151]])})
    with pytest.raises(ValueError, match=r"x: label value 151 is outside the class list \(0\.\.150, or 255"):
        open_dataset("ade20k150", tmp_path)[0]


@pytest.fixture
def garden(tmp_path):
    """Folders of one's own with a YAML file beside them."""
    for number, key in enumerate(["one", "bed/two"]):
        write_image(tmp_path / "images" / "val" / f"{key}.{('png', 'jpg')[number]}", 6, 7)
        write_label(tmp_path / "labels" / "val" / f"{key}.png", np.resize([0, 1, 2], (6, 7)))
    path = tmp_path / "garden.yaml"
    path.write_text(
        "classes: [background, cat, {potted plant: [potted plant, flower pot]}]\nbackground: true\n"
    )
    return path


def test_folders_of_ones_own(garden, tmp_path_factory) -> None:
    dataset = open_dataset(str(garden))
    assert dataset.name == "garden"
    assert dataset.keys == ("bed/two", "one")
    assert dataset.classes == ("background", "cat", "potted plant")
    assert dataset.words == (("background",), ("cat",), ("potted plant", "flower pot"))
    assert dataset.has_background
    assert [sample.label_HW.max() for sample in dataset] == [2, 2]
    assert quick_check(dataset).expected_images is None
    # The data may lie elsewhere, and a list may choose from it.
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "my.yaml"
    elsewhere.write_text(
        "name: plot\nclasses: [cat, pot]\nreduce_zero_label: true\nsplit_file: '{split}.txt'\nimages: images/val\n"
        "labels: labels/val\n"
    )
    (garden.parent / "few.txt").write_text("one\n")
    few = open_dataset(str(elsewhere), garden.parent, "few")
    assert (few.name, few.split, few.keys) == ("plot", "few", ("one",))
    assert set(np.unique(few[0].label_HW)) == {0, 1, 255}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": []}, "field 'classes': "),
        ({"classes": ["a", "b", "A "]}, "class name 'A ' stands twice"),
        ({"classes": ["a", "pot plant", "pot  plant"]}, "class name 'pot  plant' stands twice"),
        ({"classes": ["a", {"b": ["x", "a"]}, "c"]}, "word 'a' of 'b' stands for 'a' as well"),
        ({"classes": ["a", {"b": [" "]}, "c"]}, "class 1 has an empty name"),
        ({"classes": ["a", {"b": []}, "c"]}, "class 1 has an empty name"),
        ({"classes": ["a", {"b": ["b"], "c": ["c"]}]}, "a class with words is one name and a list"),
        ({"classes": ["a", False]}, "field 'classes.1.str': .*got False; .* put words like these in quotes"),
        ({"clases": ["a"]}, r"unknown field 'clases' \(did you mean 'classes'\?\)"),
        (
            {"images": "pictures/{split}"},
            r"no pictures under data root .*garden: is this garden\?|no pictures under",
        ),
        ({"root": "nowhere"}, "is not a folder"),
        (
            {"classes": [f"c{number}" for number in range(256)]},
            "has 256 classes, which takes label values up to 255; 255 stands for pixels that are not scored",
        ),
    ],
)
def test_bad_class_files(garden, change, message) -> None:
    garden.write_text(yaml.safe_dump({"classes": ["a", "b", "c"], **change}))
    with pytest.raises(ValueError, match=message):
        open_dataset(str(garden))


def test_class_files_that_are_none(garden) -> None:
    for content, message in [("[", "is not valid YAML"), ("- a\n", "must be a mapping of fields, got list")]:
        garden.write_text(content)
        with pytest.raises(ValueError, match=re.escape(str(garden)) + f".*{message}"):
            open_dataset(str(garden))
    with pytest.raises(ValueError, match="does not exist"):
        open_dataset(str(garden.parent / "nothing.yml"))


def test_two_images_of_one_name(garden) -> None:
    write_image(garden.parent / "images" / "val" / "one.jpg", 6, 7)
    with pytest.raises(ValueError, match=r"have the same name but for their ending: keep one"):
        open_dataset(str(garden))


def test_a_key_that_leads_out_of_the_folder(scenes_root) -> None:
    (folder_of(scenes_root) / "ImageSets" / "Segmentation" / "val.txt").write_text(
        "../SegmentationClass/scene_0\n"
    )
    with pytest.raises(ValueError, match="leads out of the folder"):
        open_dataset("scenes", scenes_root)
