"""Checks of what callers hand to the network, before any heavy work."""

from __future__ import annotations

import torch
from torch import Tensor

from segclip.models.config import ModelConfig

__all__ = ["check_images", "check_superpixels", "check_tokens"]


def check_images(images_BCHW: Tensor, config: ModelConfig, content: bool = True) -> None:
    """Refuse images the network can not take.

    Args:
        content: also look at the values. That waits for the device, so training on a GPU leaves it out: there
            values that are not finite pass, and show in the loss.

    Raises:
        ValueError: wrong rank, channels, type or size, no image at all, or values that are not finite.
    """
    if not isinstance(images_BCHW, Tensor):
        raise ValueError(
            f"images must be a torch tensor [batch, 3, height, width], got {type(images_BCHW).__name__}: "
            "use torch.from_numpy, or segclip.segment, which takes pictures"
        )
    shape = list(images_BCHW.shape)
    if images_BCHW.ndim != 4 or shape[1] != 3:
        raise ValueError(f"images must be [batch, 3, height, width], got shape {shape}")
    if shape[0] == 0:
        raise ValueError(f"images must hold at least one image, got a batch of 0 (shape {shape})")
    if images_BCHW.dtype != torch.uint8 and not images_BCHW.is_floating_point():
        raise ValueError(
            f"images must be uint8 (0 to 255) or float (already normalised), got {images_BCHW.dtype}"
        )
    patch = config.patch_size
    if shape[2] == 0 or shape[3] == 0 or shape[2] % patch or shape[3] % patch:
        raise ValueError(
            f"image height and width must be multiples of the patch size {patch}, got {shape[2]}x{shape[3]}: "
            "resize, crop or pad the image"
        )
    if content and images_BCHW.is_floating_point() and not bool(torch.isfinite(images_BCHW).all()):
        bad = (~torch.isfinite(images_BCHW)).flatten(1).any(dim=1).nonzero().flatten().tolist()
        raise ValueError(f"images hold values that are not finite, in samples {bad[:8]} of the batch")


def check_tokens(tokens_BT: Tensor, config: ModelConfig, content: bool = True) -> None:
    """Refuse token ids the network can not take; arguments and errors as in ``check_images``."""
    shape = list(tokens_BT.shape)
    if tokens_BT.ndim != 2 or tokens_BT.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"tokens must be int64 [batch, words], got {tokens_BT.dtype} with shape {shape}")
    if shape[0] == 0:
        raise ValueError(f"tokens must hold at least one text, got a batch of 0 (shape {shape})")
    if not 0 < shape[1] <= config.context_length:
        raise ValueError(f"a text must have 1 to {config.context_length} words, got {shape[1]}")
    if content:
        low, high = (int(value) for value in tokens_BT.aminmax())
        if low < 0 or high >= config.vocab_size:
            bad = low if low < 0 else high
            raise ValueError(
                f"token ids must be 0 to {config.vocab_size - 1}, got {bad}: was another tokenizer used?"
            )


def check_superpixels(superpixels_BL: Tensor, images_BCHW: Tensor, config: ModelConfig) -> None:
    """Refuse superpixel ids that do not belong to the images; errors as in ``check_images``."""
    batch, _, height, width = images_BCHW.shape
    rows, columns = height // config.patch_size, width // config.patch_size
    if superpixels_BL.shape != (batch, rows * columns):
        raise ValueError(
            f"superpixels must be [{batch}, {rows * columns}] (one id for each of {rows}x{columns} patches), "
            f"got shape {list(superpixels_BL.shape)}"
        )
    if superpixels_BL.is_floating_point() or superpixels_BL.dtype == torch.bool:
        raise ValueError(f"superpixels must be integers, got {superpixels_BL.dtype}")
