"""From an image to the windows that the encoder sees: resize, grid, crop, normalisation.

Shape letters: B windows, H W a window's or image's pixels, h w the resized image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from segclip.eval.datasets.images import MAX_PIXELS
from segclip.eval.protocol import Geometry, Normalisation
from segclip.models.config import CLIP_MEAN, CLIP_STD

__all__ = ["Window", "crop", "normalised", "resize", "resized_size", "window_grid"]

_PIXELS = {"clip": (CLIP_MEAN, CLIP_STD), "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}


@dataclass(frozen=True)
class Window:
    """Half-open pixel ranges of one window in the resized image."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def rows(self) -> slice:
        """Its rows."""
        return slice(self.top, self.bottom)

    @property
    def columns(self) -> slice:
        """Its columns."""
        return slice(self.left, self.right)


def resized_size(height: int, width: int, short_side: int, long_side_max: int | None) -> tuple[int, int]:
    """Size after scaling the short side to ``short_side``, the long side bounded. Rounds half up."""
    scale = short_side / min(height, width)
    if long_side_max is not None:
        scale = min(scale, long_side_max / max(height, width))
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def resize(image_HW3: NDArray[np.uint8], geometry: Geometry) -> Tensor:
    """uint8 [3, h, w]: the image resized as ``geometry`` says, rounded to 8 bits as image libraries do.

    Raises:
        ValueError: it would have more than ``MAX_PIXELS`` pixels: it is far longer than wide, and there is no bound.
    """
    image_3HW = torch.from_numpy(np.require(image_HW3, requirements=["C", "W"])).permute(2, 0, 1)
    size = resized_size(image_HW3.shape[0], image_HW3.shape[1], geometry.short_side, geometry.long_side_max)
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(
            f"a picture of {image_HW3.shape[1]} x {image_HW3.shape[0]} pixels would be resized to {size[1]} x "
            f"{size[0]}, more than the {MAX_PIXELS:,} pixels that are accepted: cut it, or set `long_side_max` in a "
            "protocol"
        )
    if size == image_HW3.shape[:2]:
        return image_3HW.contiguous()
    resized = F.interpolate(
        image_3HW[None].float(),
        size=size,
        mode=geometry.filter,
        align_corners=False,
        antialias=geometry.antialias,
    )[0]
    return resized.round().clamp(0, 255).to(torch.uint8)


def window_grid(height: int, width: int, window: int, stride: int) -> list[Window]:
    """Windows that cover every pixel, row by row; the last of a row or column is shifted back to the edge.

    A side shorter than ``window`` gets one window that ends at the edge (``predict`` pads what it feeds the
    encoder).
    """

    def starts(length: int) -> list[int]:
        count = max(length - window + stride - 1, 0) // stride + 1
        return [max(min(number * stride, length - window), 0) for number in range(count)]

    return [
        Window(top, left, min(top + window, height), min(left + window, width))
        for top in starts(height)
        for left in starts(width)
    ]


def crop(image_3hw: Tensor, window: Window, side: int) -> Tensor:
    """[3, side, side] of the image; where it is smaller than a window, the border pixels are repeated."""
    found = image_3hw[:, window.rows, window.columns]
    below, right = side - found.shape[1], side - found.shape[2]
    if not below and not right:
        return found
    rows = torch.arange(side, device=found.device).clamp(max=found.shape[1] - 1)
    columns = torch.arange(side, device=found.device).clamp(max=found.shape[2] - 1)
    return found[:, rows][:, :, columns]


def normalised(windows_B3HW: Tensor, rule: Normalisation) -> Tensor:
    """Pixels as the protocol wants them: float32 by its own mean and deviation, or as they are for the model to do.

    Raises:
        ValueError: the protocol normalises, but the windows are no longer uint8.
    """
    if rule == "model":
        return windows_B3HW
    if windows_B3HW.dtype != torch.uint8:
        raise ValueError(f"a protocol that normalises by {rule} takes uint8 images, got {windows_B3HW.dtype}")
    mean_311, std_311 = (
        torch.tensor(values, device=windows_B3HW.device)[:, None, None] for values in _PIXELS[rule]
    )
    return (windows_B3HW.float() / 255 - mean_311) / std_311
