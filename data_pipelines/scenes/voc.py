"""Writing a data set in the PASCAL VOC 2012 segmentation layout.

ROOT/VOCdevkit/VOC2012/JPEGImages/NAME.jpg
ROOT/VOCdevkit/VOC2012/SegmentationClass/NAME.png      palette PNG of class indices
ROOT/VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt  one NAME per line
ROOT/VOCdevkit/VOC2012/classes.json                    class names by index
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["VOC_FOLDER", "voc_palette", "write_voc"]

VOC_FOLDER = Path("VOCdevkit") / "VOC2012"


def voc_palette() -> list[int]:
    """The 256 colours of PASCAL VOC, flat: the bits of an index spread over the high bits of red, green and
    blue."""
    colours = []
    for index in range(256):
        channels = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                channels[channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
        colours += channels
    return colours


def write_voc(
    root: Path,
    pairs: Iterable[tuple[str, bytes, NDArray[np.uint8]]],
    *,
    classes: Sequence[str],
    split: str = "val",
) -> Path:
    """Write pictures and label maps.

    Args:
        root: folder that gets ``VOCdevkit``.
        pairs: name, JPEG bytes, label map uint8 [H, W] of indices into ``classes`` (255 is ignored).
        classes: class names by index.
        split: name of the list file.

    Returns:
        The folder ``VOCdevkit/VOC2012``.
    """
    folder = root / VOC_FOLDER
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    palette = voc_palette()
    names = []
    for name, jpeg, labels_HW in pairs:
        (folder / "JPEGImages" / f"{name}.jpg").write_bytes(jpeg)
        labels = Image.fromarray(labels_HW)
        labels.putpalette(palette)
        labels.save(folder / "SegmentationClass" / f"{name}.png")
        names.append(name)
    (folder / "classes.json").write_text(json.dumps(list(classes), indent=1) + "\n", encoding="utf-8")
    (folder / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(
        "\n".join(names) + "\n", encoding="ascii"
    )
    return folder
