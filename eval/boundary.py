"""Boundary IoU: how well outlines fit, where plain IoU mostly sees how well large areas do.

After Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", CVPR 2021: a class's mask is
replaced by those of its pixels that lie within d of a pixel outside the mask, d being 2 % of the image's diagonal, in
truth and prediction alike; then intersection over union as ever. As in their code, "within d" is a square of side
2 d + 1 (d erosions by 3 x 3), and what lies beyond the image's edge is outside every mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["RATIO", "boundary", "boundary_width"]

RATIO = 0.02
"""Width of the band as a part of the image's diagonal."""


def boundary_width(height: int, width: int, ratio: float = RATIO) -> int:
    """Width d of the band in pixels, 1 at least."""
    return max(round(ratio * math.hypot(height, width)), 1)


def boundary(label_HW: Tensor, ignored_HW: Tensor, width: int) -> Tensor:
    """bool [H, W]: pixels within ``width`` of a pixel of another label or of the image's edge, all classes at once.

    Ignored pixels are nobody's: they are in no band, and being near them puts no pixel into one. So whatever is
    predicted where nothing is asked changes nothing, and a prediction that is right wherever it is asked scores 1.
    Where a data set rings its objects with ignored pixels (PASCAL VOC), the band begins beyond that ring.

    Args:
        label_HW: class numbers below 32,767 of any integer type; of the truth or of a prediction.
        ignored_HW: bool, where the truth asks for nothing; the same for truth and prediction.
        width: from ``boundary_width``.
    """
    height, across = label_HW.shape
    most = torch.iinfo(torch.int16).max
    label_HW = label_HW.to(torch.int16)
    highest_HW = _around(label_HW.masked_fill(ignored_HW, -1), width, -1, torch.maximum)
    lowest_HW = _around(label_HW.masked_fill(ignored_HW, most), width, most, torch.minimum)
    found_HW = highest_HW != lowest_HW
    found_HW[:width] = True
    found_HW[max(height - width, 0) :] = True
    found_HW[:, :width] = True
    found_HW[:, max(across - width, 0) :] = True
    return found_HW & ~ignored_HW


def _around(values_HW: Tensor, radius: int, outside: int, join: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Extremum over the square of ``radius`` about each pixel. Windows double: radius 50 costs 7 steps, not 100."""
    window = 2 * radius + 1
    for dimension, padding in ((0, (0, 0, radius, radius)), (1, (radius, radius, 0, 0))):
        size = values_HW.shape[dimension]
        grown = F.pad(values_HW, padding, value=outside)
        reach = 1
        while reach < window:
            step = min(reach, window - reach)
            length = grown.shape[dimension] - step
            grown = join(grown.narrow(dimension, 0, length), grown.narrow(dimension, step, length))
            reach += step
        values_HW = grown.narrow(dimension, 0, size)
    return values_HW
