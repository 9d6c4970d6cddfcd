"""Small data sets in the folders of the published ones, written out by hand as mmsegmentation's documents show them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Place:
    """File names of a data set; ``{}`` is the key."""

    image: str
    label: str
    split_file: str | None = None
    keys: tuple[str, ...] = ("a", "b", "c")


_VOC = Place(
    "VOCdevkit/VOC2012/JPEGImages/{}.jpg",
    "VOCdevkit/VOC2012/SegmentationClass/{}.png",
    "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt",
    ("2007_000033", "2007_000042", "2007_000061"),
)
_CONTEXT = Place(
    "VOCdevkit/VOC2010/JPEGImages/{}.jpg",
    "VOCdevkit/VOC2010/SegmentationClassContext/{}.png",
    "VOCdevkit/VOC2010/ImageSets/SegmentationContext/val.txt",
    ("2008_000002", "2008_000003", "2008_000004"),
)
_COCO = "coco_stuff164k/images/val2017/{}.jpg"
_COCO_KEYS = ("000000000139", "000000000285", "000000000632")
PLACES = {
    "voc21": _VOC,
    "voc20": _VOC,
    "context60": _CONTEXT,
    "context59": _CONTEXT,
    "coco_stuff171": Place(_COCO, "coco_stuff164k/annotations/val2017/{}_labelTrainIds.png", keys=_COCO_KEYS),
    "coco_object": Place(
        _COCO, "coco_stuff164k/annotations/val2017/{}_instanceTrainIds.png", keys=_COCO_KEYS
    ),
    "ade20k150": Place(
        "ade/ADEChallengeData2016/images/validation/{}.jpg",
        "ade/ADEChallengeData2016/annotations/validation/{}.png",
        keys=("ADE_val_00000001", "ADE_val_00000002", "ADE_val_00000003"),
    ),
    "cityscapes19": Place(
        "cityscapes/leftImg8bit/val/{}_leftImg8bit.png",
        "cityscapes/gtFine/val/{}_gtFine_labelTrainIds.png",
        keys=(
            "frankfurt/frankfurt_000000_000294",
            "frankfurt/frankfurt_000000_000576",
            "munster/munster_000000_000019",
        ),
    ),
}
CLASSES = {
    "voc21": 21, "voc20": 20, "context60": 60, "context59": 59, "coco_object": 81, "coco_stuff171": 171,
    "ade20k150": 150, "cityscapes19": 19,
}  # fmt: skip
COUNTED_FROM_ONE = ("voc20", "context59", "ade20k150")
WITH_IGNORED = ("voc21", "voc20", "coco_stuff171", "cityscapes19")


def raw_labels(name: str) -> list[np.ndarray]:
    """Three label maps as such a set's files hold them, with every class in them."""
    highest = CLASSES[name] - (name not in COUNTED_FROM_ONE)
    values = np.arange(highest + 1)
    labels = []
    for number in range(3):
        label = np.resize(np.roll(values, 7 * number), (14, 15 + number)).astype(np.uint8)
        if name in WITH_IGNORED:
            label[0, :2] = 255
        labels.append(label)
    return labels


def write_image(path: Path, height: int, width: int, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)


def write_label(path: Path, label: np.ndarray, *, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(label.astype(np.uint8))
    if palette:
        # Colours in no order: only indices may be read.
        picture.putpalette(np.random.default_rng(1).integers(0, 256, 768).tolist())
    picture.save(path)


def write_published(
    root: Path, name: str, labels: Mapping[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """Write the files of a data set; returns the label maps by key."""
    place = PLACES[name]
    labels = dict(zip(place.keys, raw_labels(name), strict=True)) if labels is None else dict(labels)
    for number, (key, label) in enumerate(labels.items()):
        write_image(root / place.image.format(key), *label.shape, seed=number)
        write_label(root / place.label.format(key), label, palette=name.startswith("voc"))
    if place.split_file is not None:
        split = root / place.split_file
        split.parent.mkdir(parents=True, exist_ok=True)
        split.write_text("".join(f"{key}\n" for key in labels))
    return labels
