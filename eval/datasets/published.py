"""The published data sets: their classes, folders, label values and sizes, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from segclip.eval.datasets import class_lists, layouts
from segclip.eval.datasets.layouts import Layout

__all__ = ["DATASETS", "PUBLISHED", "Published"]


@dataclass(frozen=True)
class Published:
    """What is known of a data set before its files are seen.

    Attributes:
        title: its name in tables of papers.
        classes: names in the order of the labels that the network is scored on.
        layout: its folders.
        has_background: class 0 means "none of the named classes".
        reduce_zero_label: value 0 of the files is not scored, and all others count from 1.
        ignored: whether good label files hold 255 somewhere.
        images: how many images each split has.
    """

    title: str
    classes: tuple[str, ...]
    layout: Layout
    ignored: Literal["some", "none"]
    has_background: bool = False
    reduce_zero_label: bool = False
    images: Mapping[str, int] = field(default_factory=dict)


_VOC = {"train": 1464, "val": 1449, "trainval": 2913}
_CONTEXT = {"train": 4996, "val": 5104}
_COCO = {"train": 118287, "val": 5000}
_BACKGROUND = ("background",)

PUBLISHED: dict[str, Published] = {
    "voc21": Published(
        "PASCAL VOC 2012", (*_BACKGROUND, *class_lists.VOC), layouts.VOC, "some", has_background=True, images=_VOC
    ),
    "voc20": Published(
        "PASCAL VOC 2012 without background", class_lists.VOC, layouts.VOC, "some", reduce_zero_label=True, images=_VOC
    ),
    "context60": Published(
        "PASCAL Context", (*_BACKGROUND, *class_lists.CONTEXT), layouts.CONTEXT, "none",
        has_background=True, images=_CONTEXT,
    ),
    "context59": Published(
        "PASCAL Context without background", class_lists.CONTEXT, layouts.CONTEXT, "none",
        reduce_zero_label=True, images=_CONTEXT,
    ),
    "coco_object": Published(
        "COCO-Object", (*_BACKGROUND, *class_lists.COCO_OBJECT), layouts.COCO_OBJECT, "none",
        has_background=True, images=_COCO,
    ),
    "coco_stuff171": Published("COCO-Stuff", class_lists.COCO_STUFF, layouts.COCO_STUFF, "some", images=_COCO),
    "ade20k150": Published(
        "ADE20K", class_lists.ADE20K, layouts.ADE20K, "none", reduce_zero_label=True,
        images={"train": 20210, "val": 2000},
    ),
    "cityscapes19": Published(
        "Cityscapes", class_lists.CITYSCAPES, layouts.CITYSCAPES, "some", images={"train": 2975, "val": 500}
    ),
}  # fmt: skip

DATASETS = (*PUBLISHED, "scenes")
"""Names that ``open_dataset`` knows; the path of a YAML file is the other way to give a data set."""
