"""Assign each patch to one center and average the patches of each center.

    a[g, l] = q[g] . k[l]                                        (no scale)
    y       = softmax over g of (a + n) / t                      (n Gumbel noise, t temperature)
    h[g, l] = 1 if g = argmax_g y[g, l] else 0                   (backward: as if h were y)
    r[g]    = sum_l h[g, l] v[l] / max(sum_l h[g, l], 1)

Shapes: q [B, G, C], k and v [B, L, C], n, a, h [B, G, L], r [B, G, C]. B batch, G centers, L patches,
C width.
Types: q, k, v in float32 or bfloat16; a, n, y, h in float32, sums in float32; r in the type of v.

The gradient of h reaches r through the sum, and through the count where that is above one. (At a count of
exactly one either slope of the bend would do; the numbers that this is compared with take the flat one.)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from segclip.kernels.dispatch import use_triton
from segclip.keyed_random import gumbel

__all__ = ["GumbelKey", "PatchAssignment", "patch_assignment", "patch_assignment_reference"]


MOST_CENTERS = 64
"""A kernel holds all centers of a patch on chip."""


class GumbelKey(NamedTuple):
    """Names Gumbel noise instead of holding it: sample b draws its G * L numbers at ``positions_B[b]``.

    Element (g, l) is number ``g * L + l`` of those that ``segclip.keyed_random.gumbel`` draws for a sample.
    """

    seed: int
    purpose: int
    positions_B: Tensor


class PatchAssignment(NamedTuple):
    """Result of ``patch_assignment``."""

    regions_BGC: Tensor
    """Mean value over the patches of each center, zero for a center without patches; type of the values."""
    hard_BGL: Tensor
    """Float32 one-hot over centers; its gradient is that of the (noisy) softmax."""
    logits_BGL: Tensor
    """Float32 products of centers and keys, without noise or temperature."""

    @property
    def soft_BGL(self) -> Tensor:
        """Softmax of the logits over centers, without noise or temperature: for segmentation maps."""
        return self.logits_BGL.softmax(dim=1)


def patch_assignment(
    query_BGC: Tensor,
    key_BLC: Tensor,
    value_BLC: Tensor,
    noise: Tensor | GumbelKey | None = None,
    temperature: float = 1.0,
) -> PatchAssignment:
    """Assign patches to centers; see the formula at the top of this file.

    Args:
        query_BGC: centers.
        key_BLC: patch keys.
        value_BLC: patch values.
        noise: Gumbel noise as float32 [B, G, L], a constant to the gradient; or the key it is drawn with, or None
            for none.
        temperature: divides the noisy logits; evaluation uses 1.

    Raises:
        ValueError: shapes, types or devices that do not go together; more than 64 centers; a temperature that is
            not above zero; logits that are not finite. The last is looked for where that does not make a training
            step wait for its device; there the assignment and regions of the sample become NaN.
    """
    _check(query_BGC, key_BLC, value_BLC, noise)
    if not temperature > 0:
        raise ValueError(f"temperature of patch_assignment must be above zero, got {temperature}")
    if use_triton(query_BGC):
        from segclip.kernels.patch_assignment_triton import patch_assignment_triton

        out = PatchAssignment(*patch_assignment_triton(query_BGC, key_BLC, value_BLC, noise, temperature))
    else:
        out = patch_assignment_reference(query_BGC, key_BLC, value_BLC, noise, temperature)
    _check_finite(out.logits_BGL)
    return out


def patch_assignment_reference(
    query_BGC: Tensor,
    key_BLC: Tensor,
    value_BLC: Tensor,
    noise: Tensor | GumbelKey | None = None,
    temperature: float = 1.0,
) -> PatchAssignment:
    """Plain torch definition of ``patch_assignment``."""
    compute = torch.promote_types(query_BGC.dtype, torch.float32)
    logits_BGL = query_BGC.to(compute) @ key_BLC.to(compute).transpose(1, 2)
    noisy_BGL = logits_BGL
    if isinstance(noise, GumbelKey):
        centers, patches = logits_BGL.shape[1:]
        noise = gumbel(noise.seed, noise.purpose, noise.positions_B, centers * patches).view_as(logits_BGL)
    if noise is not None:
        noisy_BGL = noisy_BGL + noise
    if temperature != 1.0:
        noisy_BGL = noisy_BGL / temperature
    soft_BGL = noisy_BGL.softmax(dim=1)
    winner_B1L = soft_BGL.detach().argmax(dim=1, keepdim=True)
    one_hot_BGL = torch.zeros_like(soft_BGL).scatter_(1, winner_B1L, 1.0)
    # soft - soft.detach() is exactly zero, so the value stays exactly 0 or 1 while the gradient is the
    # softmax's.
    hard_BGL = one_hot_BGL + (soft_BGL - soft_BGL.detach())
    count_BG1 = hard_BGL.sum(dim=2, keepdim=True)
    # Not clamp_min: versions of torch differ in the gradient they give it at a count of exactly one.
    count_BG1 = torch.where(count_BG1 > 1.5, count_BG1, 1.0)
    regions_BGC = (hard_BGL @ value_BLC.to(compute)) / count_BG1
    return PatchAssignment(regions_BGC.to(value_BLC.dtype), hard_BGL, logits_BGL)


def _check(query_BGC: Tensor, key_BLC: Tensor, value_BLC: Tensor, noise: Tensor | GumbelKey | None) -> None:
    if query_BGC.ndim != 3 or key_BLC.ndim != 3:
        raise ValueError(
            "query and key of patch_assignment must be [B, G, C] and [B, L, C], "
            f"got shapes {list(query_BGC.shape)} and {list(key_BLC.shape)}"
        )
    if not query_BGC.is_floating_point():
        raise ValueError(f"query of patch_assignment must be of a floating-point type, got {query_BGC.dtype}")
    batch, centers, width = query_BGC.shape
    patches = key_BLC.shape[1]
    if not 0 < centers <= MOST_CENTERS:
        raise ValueError(f"query of patch_assignment must hold 1 to {MOST_CENTERS} centers, got {centers}")
    if query_BGC.numel() == 0 or key_BLC.numel() == 0:
        raise ValueError(
            "query and key of patch_assignment must not be empty, "
            f"got shapes {list(query_BGC.shape)} and {list(key_BLC.shape)}"
        )
    _check_like("key", key_BLC, (batch, patches, width), query_BGC)
    _check_like("value", value_BLC, (batch, patches, width), query_BGC)
    if isinstance(noise, GumbelKey):
        _check_like("noise positions", noise.positions_B, (batch,), query_BGC, torch.int64)
    elif noise is not None:
        compute = torch.promote_types(query_BGC.dtype, torch.float32)
        _check_like("noise", noise, (batch, centers, patches), query_BGC, compute)


def _check_like(
    name: str, tensor: Tensor, shape: tuple[int, ...], query: Tensor, dtype: torch.dtype | None = None
) -> None:
    """Refuse an argument of another shape, type (None: the query's) or device than the query calls for."""
    if tensor.shape != shape:
        raise ValueError(f"{name} of patch_assignment must be {list(shape)}, got {list(tensor.shape)}")
    dtype = dtype or query.dtype
    if tensor.dtype != dtype or tensor.device != query.device:
        raise ValueError(
            f"{name} of patch_assignment must be {dtype} on {query.device} beside the query, "
            f"got {tensor.dtype} on {tensor.device}"
        )


def _check_finite(logits_BGL: Tensor) -> None:
    if torch.compiler.is_compiling() or (logits_BGL.device.type != "cpu" and torch.is_grad_enabled()):
        return
    finite_B = logits_BGL.detach().isfinite().flatten(1).all(dim=1)
    if not finite_B.all():
        bad = (~finite_B).nonzero().flatten().tolist()
        raise ValueError(
            "logits of patch_assignment, the products of query and key, are not finite "
            f"in samples {bad[:8]} of the batch"
        )
