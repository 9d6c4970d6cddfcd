"""Around the reconstruction decoder: put tokens back in their places, and compare predicted with true pixels.

``unshuffle``: the decoder sees one sequence of N places in image order. Place n takes visible token r[n], or
the mask token where r[n] points behind the visible ones, plus the position of place n (r[b] is a permutation of
0 ... N-1, so each visible token stands in one place):

    x[b, n] = (tokens[b, r[b, n]] if r[b, n] < K else mask_token) + positions[n]

Shapes: tokens [B, K, D], r [B, N] int64, mask_token [D], positions [N, D], x [B, N, D] in the type of tokens.

``masked_pixel_loss``: mean squared error over the masked patches only:

    loss = 1 / (B M 3 p^2) * sum (prediction[b, m] - pixels(image[b], patch masked[b, m]))^2

Shapes: prediction [B, M, p * p * 3], image [B, 3, H, W] uint8 or float, masked [B, M] int64 patch numbers in
row order. The pixels of a patch are ordered (row, column, channel). uint8 images are normalised here:
(x / 255 - mean) / std; float images are taken as already normalised. The loss is float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from segclip.kernels.dispatch import use_triton

__all__ = [
    "masked_pixel_loss",
    "masked_pixel_loss_reference",
    "patch_pixels",
    "unshuffle",
    "unshuffle_reference",
]


def unshuffle(tokens_BKD: Tensor, restore_BN: Tensor, mask_token_D: Tensor, positions_ND: Tensor) -> Tensor:
    """Tokens in image order with mask tokens in the gaps and positions added; see the top of this file.

    Raises:
        ValueError: shapes, types or devices that do not go together.
    """
    if tokens_BKD.ndim != 3 or tokens_BKD.numel() == 0:
        raise ValueError(f"tokens of unshuffle must be [B, K, D] and not empty, got {list(tokens_BKD.shape)}")
    if not tokens_BKD.is_floating_point():
        raise ValueError(f"tokens of unshuffle must be of a floating-point type, got {tokens_BKD.dtype}")
    batch, visible, width = tokens_BKD.shape
    if restore_BN.ndim != 2 or restore_BN.shape[0] != batch:
        raise ValueError(f"restore of unshuffle must be [{batch}, N], got {list(restore_BN.shape)}")
    if restore_BN.shape[1] < visible:
        raise ValueError(
            f"restore of unshuffle must have a place for each of {visible} tokens, got {restore_BN.shape[1]}"
        )
    if mask_token_D.shape != (width,):
        raise ValueError(f"mask token of unshuffle must be [{width}], got {list(mask_token_D.shape)}")
    if positions_ND.shape != (restore_BN.shape[1], width):
        raise ValueError(
            f"positions of unshuffle must be [{restore_BN.shape[1]}, {width}], got {list(positions_ND.shape)}"
        )
    _check_like("restore of unshuffle", restore_BN, torch.int64, tokens_BKD)
    _check_like("mask token of unshuffle", mask_token_D, tokens_BKD.dtype, tokens_BKD)
    _check_like("positions of unshuffle", positions_ND, tokens_BKD.dtype, tokens_BKD)
    if use_triton(tokens_BKD):
        from segclip.kernels.masked_decoder_triton import unshuffle_triton

        return unshuffle_triton(tokens_BKD, restore_BN, mask_token_D, positions_ND)
    return unshuffle_reference(tokens_BKD, restore_BN, mask_token_D, positions_ND)


def unshuffle_reference(
    tokens_BKD: Tensor, restore_BN: Tensor, mask_token_D: Tensor, positions_ND: Tensor
) -> Tensor:
    """Plain torch definition of ``unshuffle``."""
    batch, visible, width = tokens_BKD.shape
    gaps = restore_BN.shape[1] - visible
    full_BND = torch.cat([tokens_BKD, mask_token_D.expand(batch, gaps, width)], dim=1)
    return full_BND.gather(1, restore_BN[:, :, None].expand(-1, -1, width)) + positions_ND


def masked_pixel_loss(
    prediction_BMP: Tensor,
    images_BCHW: Tensor,
    masked_BM: Tensor,
    patch_size: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> Tensor:
    """Mean squared pixel error over masked patches, a float32 scalar; see the top of this file.

    Raises:
        ValueError: shapes, types or devices that do not go together, or nothing to compare.
    """
    if images_BCHW.ndim != 4 or images_BCHW.shape[1] != 3 or len(mean) != 3 or len(std) != 3:
        raise ValueError(
            "images of masked_pixel_loss must be [B, 3, H, W] with 3 numbers each in mean and std, "
            f"got {list(images_BCHW.shape)}, {len(mean)} and {len(std)}"
        )
    batch, channels, height, width = images_BCHW.shape
    if patch_size < 1:
        raise ValueError(f"patch size of masked_pixel_loss must be at least 1, got {patch_size}")
    if height % patch_size or width % patch_size:
        raise ValueError(f"image size {height}x{width} is not divisible by the patch size {patch_size}")
    if masked_BM.ndim != 2 or masked_BM.shape[0] != batch:
        raise ValueError(f"masked patches must be [{batch}, M], got {list(masked_BM.shape)}")
    expected = (*masked_BM.shape, channels * patch_size**2)
    if prediction_BMP.shape != expected:
        raise ValueError(f"pixel prediction must be {list(expected)}, got {list(prediction_BMP.shape)}")
    if not prediction_BMP.is_floating_point():
        raise ValueError(f"pixel prediction must be of a floating-point type, got {prediction_BMP.dtype}")
    if prediction_BMP.numel() == 0:
        raise ValueError(f"pixel prediction must not be empty, got {list(prediction_BMP.shape)}")
    if images_BCHW.dtype != torch.uint8 and not images_BCHW.is_floating_point():
        raise ValueError(
            "images of masked_pixel_loss must be uint8 (0 to 255) or float (already normalised), "
            f"got {images_BCHW.dtype}"
        )
    _check_like("images of masked_pixel_loss", images_BCHW, images_BCHW.dtype, prediction_BMP)
    _check_like("masked patches", masked_BM, torch.int64, prediction_BMP)
    if use_triton(prediction_BMP):
        from segclip.kernels.masked_decoder_triton import masked_pixel_loss_triton

        return masked_pixel_loss_triton(prediction_BMP, images_BCHW, masked_BM, patch_size, mean, std)
    return masked_pixel_loss_reference(prediction_BMP, images_BCHW, masked_BM, patch_size, mean, std)


def masked_pixel_loss_reference(
    prediction_BMP: Tensor,
    images_BCHW: Tensor,
    masked_BM: Tensor,
    patch_size: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> Tensor:
    """Plain torch definition of ``masked_pixel_loss``."""
    pixels_BLP = patch_pixels(images_BCHW, patch_size)
    target_BMP = pixels_BLP.gather(1, masked_BM[:, :, None].expand(-1, -1, pixels_BLP.shape[2]))
    compute = torch.promote_types(prediction_BMP.dtype, torch.float32)
    if target_BMP.dtype == torch.uint8:
        repeats = patch_size**2
        mean_P = torch.tensor(mean, dtype=compute, device=target_BMP.device).repeat(repeats)
        std_P = torch.tensor(std, dtype=compute, device=target_BMP.device).repeat(repeats)
        target_BMP = (target_BMP.to(compute) / 255.0 - mean_P) / std_P
    return torch.nn.functional.mse_loss(prediction_BMP.to(compute), target_BMP.to(compute))


def patch_pixels(images_BCHW: Tensor, patch_size: int) -> Tensor:
    """Pixels of each patch, [B, L, p * p * C]: patches in row order, pixels by (row, column, channel)."""
    batch, channels, height, width = images_BCHW.shape
    rows, columns = height // patch_size, width // patch_size
    return (
        images_BCHW.view(batch, channels, rows, patch_size, columns, patch_size)
        .permute(0, 2, 4, 3, 5, 1)
        .reshape(batch, rows * columns, patch_size * patch_size * channels)
    )


def _check_like(name: str, tensor: Tensor, dtype: torch.dtype, like: Tensor) -> None:
    if tensor.dtype != dtype or tensor.device != like.device:
        raise ValueError(f"{name} must be {dtype} on {like.device}, got {tensor.dtype} on {tensor.device}")
