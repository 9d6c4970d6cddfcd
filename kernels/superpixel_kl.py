"""Symmetrised KL divergence between each patch's assignment and the mean assignment of its superpixel.

    m[l]  = mean of h[l'] over the patches l' with the same superpixel id as l
    p, s  = softmax over g of h[l], of m[l]             (softmax on top of the one-hot values)
    loss  = 1 / (2 B L G) * sum_{b, l, g} (s - p) (log s - log p)

Shapes: h [B, G, L] assignment, ids [B, L] integers of any value, compared within an image only. B batch, G
centers, L patches. Everything in float32. The divergence is the mean of KL(s || p) and KL(p || s); neither
side is detached.
"""

from __future__ import annotations

import torch
from torch import Tensor

from segclip.kernels.dispatch import use_triton

__all__ = ["superpixel_kl", "superpixel_kl_reference", "superpixel_kl_sums_reference"]


def superpixel_kl(hard_BGL: Tensor, superpixels_BL: Tensor) -> Tensor:
    """Superpixel loss, a float32 scalar: mean over samples, patches and centers; see the top of this file.

    Args:
        hard_BGL: assignment of patches to centers, one-hot over G, differentiable.
        superpixels_BL: integer superpixel id of each patch.

    Raises:
        ValueError: the ids are not integers, not [B, L], or on another device; the assignment is of no floating-point
            type; or there is nothing to compare.
    """
    if not hard_BGL.is_floating_point():
        raise ValueError(
            f"hard assignment of superpixel_kl must be of a floating-point type, got {hard_BGL.dtype}"
        )
    if superpixels_BL.is_floating_point() or superpixels_BL.dtype == torch.bool:
        raise ValueError(f"superpixel ids must be integers, got {superpixels_BL.dtype}")
    if hard_BGL.ndim != 3 or superpixels_BL.shape != (hard_BGL.shape[0], hard_BGL.shape[2]):
        raise ValueError(
            f"superpixel ids must be [B, L] beside an assignment [B, G, L] = {list(hard_BGL.shape)}, "
            f"got {list(superpixels_BL.shape)}"
        )
    if hard_BGL.numel() == 0:
        raise ValueError(f"hard assignment of superpixel_kl is empty: shape {list(hard_BGL.shape)}")
    if superpixels_BL.device != hard_BGL.device:
        raise ValueError(
            f"superpixel ids must be on the device of the assignment, {hard_BGL.device}, "
            f"got {superpixels_BL.device}"
        )
    if use_triton(hard_BGL):
        from segclip.kernels.superpixel_kl_triton import superpixel_kl_triton

        return superpixel_kl_triton(hard_BGL, superpixels_BL)
    return superpixel_kl_reference(hard_BGL, superpixels_BL)


def superpixel_kl_reference(hard_BGL: Tensor, superpixels_BL: Tensor) -> Tensor:
    """Plain torch definition of ``superpixel_kl``."""
    mean_to_patch, patch_to_mean = superpixel_kl_sums_reference(hard_BGL, superpixels_BL)
    return (mean_to_patch + patch_to_mean) / (2 * hard_BGL.numel())


def superpixel_kl_sums_reference(hard_BGL: Tensor, superpixels_BL: Tensor) -> tuple[Tensor, Tensor]:
    """KL(s || p) and KL(p || s), each summed over batch, patches and centers."""
    hard_BGL = hard_BGL.to(torch.promote_types(hard_BGL.dtype, torch.float32))
    same_BLL = (superpixels_BL[:, :, None] == superpixels_BL[:, None, :]).to(hard_BGL.dtype)
    # Symmetric in its two patch axes, so it may stand on the right; every patch shares an id with itself.
    mean_BGL = (hard_BGL @ same_BLL) / same_BLL.sum(dim=1, keepdim=True)
    log_patch_BGL = hard_BGL.log_softmax(dim=1)
    log_mean_BGL = mean_BGL.log_softmax(dim=1)
    difference_BGL = log_mean_BGL - log_patch_BGL
    return (log_mean_BGL.exp() * difference_BGL).sum(), -(log_patch_BGL.exp() * difference_BGL).sum()
