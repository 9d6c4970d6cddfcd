from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from segclip.eval.datasets import DATASETS, open_dataset


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
    assert set(DATASETS) == {"scenes", "voc21"}


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
