"""PASCAL Context's label files from ``trainval_merged.json``, the annotations of "PASCAL in Detail".

The file holds ``images`` (image_id, file_name, height, width, phase) and ``annos_segmentation`` (image_id, category_id,
segmentation as COCO's run lengths). What detail-api does with them for a semantic label map is short: categories are
painted in the order of the file, later ones over earlier ones, on 0.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segclip.console import nearest
from segclip.eval.datasets import layouts
from segclip.eval.datasets.class_lists import CONTEXT
from segclip.eval.datasets.label_files import Converted, replace_file, run_converter, write_label
from segclip.eval.datasets.layouts import find_base
from segclip.eval.datasets.rle import decode_mask
from segclip.processes import Tick

__all__ = ["CONTEXT_IDS", "convert_context", "paint"]

CONTEXT_IDS: tuple[int, ...] = (
    2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113, 115, 144, 158, 159,
    162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326, 347, 349, 354, 355, 360, 366, 368, 397,
    415, 416, 420, 424, 427, 440, 445, 454, 458,
)  # fmt: skip
"""Category of each of the 59 classes, in the order of their labels 1 to 59: places in the alphabetical list of 459."""
assert len(CONTEXT_IDS) == len(CONTEXT)
_LABELS = {category: label for label, category in enumerate(CONTEXT_IDS, 1)}
_ROOTS = ("images", "annos_segmentation")


@dataclass(frozen=True)
class _Picture:
    """An image with its annotations: (category, mask) in the order of the file."""

    key: str
    size: tuple[int, int]
    masks: tuple[tuple[int, Any], ...]
    target: Path


def paint(size: tuple[int, int], masks: Sequence[tuple[int, Any]], name: str) -> NDArray[np.uint8]:
    """Label map uint8 [H, W]: 0 where nothing is annotated, else 1 to 59; later masks lie over earlier ones.

    Raises:
        ValueError: a category outside the 59, or a mask that is broken or of another size.
    """
    label_HW = np.zeros(size, dtype=np.uint8)
    for category, segmentation in masks:
        if category not in _LABELS:
            raise ValueError(f"{name}: category {category} is none of the 59 of PASCAL Context")
        try:
            mask_HW = decode_mask(segmentation)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        if mask_HW.shape != label_HW.shape:
            raise ValueError(
                f"{name}: the image is {size[1]} x {size[0]}, a mask {mask_HW.shape[1]} x {mask_HW.shape[0]}"
            )
        label_HW[mask_HW] = _LABELS[category]
    return label_HW


def _convert(pictures: Sequence[_Picture], tick: Tick) -> int:
    for picture in pictures:
        write_label(picture.target, paint(picture.size, picture.masks, picture.key))
        tick()
    return len(pictures)


def convert_context(
    root: str | Path,
    annotations: str | Path,
    splits: Sequence[str] | None = None,
    *,
    processes: int = 1,
    overwrite: bool = False,
) -> list[Converted]:
    """Write ``SegmentationClassContext/*.png`` and ``ImageSets/SegmentationContext/*.txt``.

    Args:
        root: folder of VOC2010, or one above it.
        annotations: ``trainval_merged.json``.
        splits: ``train`` or ``val``; None: both.
        processes: how many work.
        overwrite: also files that are there.

    Raises:
        ValueError: another folder, another file, or something broken in it.
    """
    base = find_base(layouts.CONTEXT, "PASCAL Context", root)
    path = Path(annotations)
    pictures = _read(path, base / layouts.CONTEXT.labels)
    done = []
    for split in splits or ("train", "val"):
        chosen = pictures.get(split)
        if not chosen:
            raise ValueError(
                f"{path} has no image of split {split!r}{nearest(split, pictures)}; it has: "
                + ", ".join(f"{each} ({len(items):,})" for each, items in sorted(pictures.items()))
            )
        done.append(
            run_converter(
                f"context {split}",
                _convert,
                chosen,
                lambda item: item.target,
                processes=processes,
                overwrite=overwrite,
            )
        )
        # Last, so that a list never names what is not there.
        assert layouts.CONTEXT.split_file is not None
        keys = "".join(f"{key}\n" for key in sorted(picture.key for picture in chosen))
        replace_file(
            base / layouts.CONTEXT.split_file.replace("{split}", split), partial(_write_text, text=keys)
        )
    return done


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _read(path: Path, folder: Path) -> dict[str, list[_Picture]]:
    """The images of each split."""
    if not path.is_file():
        raise ValueError(f"annotation file {path} does not exist; docs/datasets.md says where it comes from")
    try:
        content = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); is the download complete?") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(each), list) for each in _ROOTS):
        raise ValueError(
            f"{path} is not trainval_merged.json: it has no lists {' and '.join(map(repr, _ROOTS))}"
        )
    try:
        masks: dict[int, list[tuple[int, Any]]] = {int(image["image_id"]): [] for image in content["images"]}
        for each in content["annos_segmentation"]:
            if each["image_id"] not in masks:
                raise ValueError(
                    f"{path}: annotation {each.get('id')} is of image {each['image_id']}, which is not listed"
                )
            masks[each["image_id"]].append((int(each["category_id"]), each["segmentation"]))
        pictures: dict[str, list[_Picture]] = {}
        for image in content["images"]:
            key = Path(image["file_name"]).stem
            pictures.setdefault(image["phase"], []).append(
                _Picture(
                    key,
                    (int(image["height"]), int(image["width"])),
                    tuple(masks[image["image_id"]]),
                    folder / f"{key}.png",
                )
            )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not trainval_merged.json: an entry lacks {error}") from error
    return pictures
