from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.datasets import VOCSegmentation

from segclip.data_pipelines.scenes.scene import CLASSES, draw_scenes, render
from segclip.data_pipelines.scenes.sets import SceneSet, write_scene_voc
from segclip.data_pipelines.scenes.voc import voc_palette


def test_the_ordinary_reader_of_pascal_voc_reads_the_split(tmp_path: Path) -> None:
    folder = write_scene_voc(tmp_path, SceneSet(count=5, seed=9))
    assert folder == tmp_path / "VOCdevkit" / "VOC2012"
    dataset = VOCSegmentation(str(tmp_path), year="2012", image_set="val")
    assert len(dataset) == 5
    for scene, (picture, labels) in zip(draw_scenes(9, 0, 5), dataset, strict=True):
        truth, ids = render(scene)
        assert labels.mode == "P"
        np.testing.assert_array_equal(np.asarray(labels), ids)
        assert np.abs(np.asarray(picture).astype(int) - truth).mean() < 8
    assert json.loads((folder / "classes.json").read_text()) == list(CLASSES)


def test_the_palette_is_that_of_pascal_voc(tmp_path: Path) -> None:
    palette = np.array(voc_palette()).reshape(256, 3)
    assert palette[[0, 1, 2, 15, 20, 255]].tolist() == [
        [0, 0, 0], [128, 0, 0], [0, 128, 0], [192, 128, 128], [0, 64, 128], [224, 224, 192],
    ]  # fmt: skip
    folder = write_scene_voc(tmp_path, SceneSet(count=1, seed=9))
    (file,) = (folder / "SegmentationClass").iterdir()
    with Image.open(file) as labels:
        assert labels.getpalette() == voc_palette()
