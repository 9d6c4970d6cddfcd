"""Random crops of a picture and of its map of superpixels, brought to the size of training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

__all__ = ["CROP_DRAWS", "Box", "crop_box", "resize", "resize_nearest"]

CROP_TRIES = 10
CROP_DRAWS = 2 * CROP_TRIES + 2
"""Random numbers that a crop takes: area and shape of each try, then row and column."""


@dataclass(frozen=True, slots=True)
class Box:
    """A crop in pixels."""

    top: int
    left: int
    height: int
    width: int


def crop_box(
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    draws: Sequence[float],
) -> Box:
    """A random crop by the rule of torchvision's ``RandomResizedCrop``.

    Args:
        height, width: of the whole picture.
        scale: range of the area's share.
        ratio: range of width over height, drawn uniformly in its logarithm.
        draws: CROP_DRAWS uniform numbers in (0, 1): area and shape of each try, then row and column.
    """
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    for attempt in range(CROP_TRIES):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * draws[2 * attempt])
        shape = math.exp(log_low + (log_high - log_low) * draws[2 * attempt + 1])
        w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(draws[-2] * (height - h + 1)), int(draws[-1] * (width - w + 1)), h, w)
    # No try fits: the largest centred piece of an allowed shape.
    shape = min(max(width / height, ratio[0]), ratio[1])
    w, h = min(width, round(height * shape)), min(height, round(width / shape))
    return Box((height - h) // 2, (width - w) // 2, h, w)


def resize(picture_CHW: Tensor, box: Box, size: int) -> Tensor:
    """Antialiased bicubic resize of a crop: uint8 [3, size, size]."""
    cut_CHW = picture_CHW[:, box.top : box.top + box.height, box.left : box.left + box.width]
    return interpolate(cut_CHW.unsqueeze(0), (size, size), mode="bicubic", antialias=True).squeeze(0)


def resize_nearest(map_HW: NDArray[np.integer], box: Box, size: int) -> NDArray[np.integer]:
    """Nearest resize of a crop, by pixel centres: [size, size]."""
    return map_HW.take(_nearest(box.top, box.height, size), 0).take(_nearest(box.left, box.width, size), 1)


@lru_cache(maxsize=4096)
def _nearest(start: int, length: int, size: int) -> NDArray[np.int64]:
    """The pixel under the centre of each of ``size`` equal parts of ``length`` pixels from ``start``."""
    steps = (2 * np.arange(size) + 1) * length // (2 * size)
    return start + steps
