"""Triton kernels of ``superpixel_kl``; the formula and the letters are in ``segclip.kernels.superpixel_kl``.

One program handles one tile of patches of one sample. It walks over all patches of the sample in tiles of J and
compares their ids with its own, so that the matrix of equal ids exists only as a tile on chip, whatever the ids are
and however many there are; the sums over superpixels are products with that tile.

Backward, for one sample. With d = log s - log p, the slope of sum_g (s - p) d is

    towards h[l] through p:   -p (d - <p, d>) - (s - p)             <x, y> = sum over g of x y
    towards m[l] through s:    s (d - <s, d>) + (s - p)

and h[l] receives the mean of the second over its superpixel. m and s are the same for all patches of a superpixel,
so that mean needs only the superpixel's means P of p and Q of log p:

    s (log s - Q - <s, log s - Q>) + s - P

Hence one walk over the patches yields the gradient: nothing is kept from the forward pass but its inputs.

Bytes a sample, least: forward h and ids; backward h, ids and the gradient.
"""
# mypy: allow-untyped-defs
# ruff: noqa: E741 (l counts patches, as in the formula)

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from segclip.kernels.triton_common import block_of_centers, dot_exact, tuned

__all__ = ["superpixel_kl_triton"]

# Larger tiles read the sample less often, smaller ones waste less of the last tile; beyond these, registers spill.
# BLOCK_J is the order of the sums: one value for all.
CONFIGS = [
    triton.Config({"BLOCK_L": 128, "BLOCK_J": 32}, num_warps=8),
    triton.Config({"BLOCK_L": 64, "BLOCK_J": 32}, num_warps=4),
    triton.Config({"BLOCK_L": 32, "BLOCK_J": 32}, num_warps=2),
]


@triton.jit
def _assignment(hard, g, l, G, L, hard_g, hard_l):
    """A tile of the assignment in float32, zero outside."""
    inside_GL = (g < G)[:, None] & (l < L)[None, :]
    return tl.load(hard + g[:, None] * hard_g + l[None, :] * hard_l, mask=inside_GL, other=0.0).to(tl.float32)


@triton.jit
def _log_softmax(x_GL, valid_G1):
    # Finite: padding centers get the probability zero, and their differences are zero and not NaN.
    x_GL = tl.where(valid_G1, x_GL, -1e30)
    x_GL -= tl.max(x_GL, axis=0)[None, :]
    return x_GL - tl.log(tl.sum(tl.exp(x_GL), axis=0))[None, :]


@tuned(*CONFIGS, key=["G", "L"])
@triton.jit
def _forward(
    hard, ids, divergence,
    G, L, hard_b, hard_g, hard_l, ids_b, ids_l,
    BLOCK_G: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    """divergence [B, L] float32, contiguous: sum over g of (s - p) (log s - log p)."""
    b = tl.program_id(0).to(tl.int64)
    g = tl.arange(0, BLOCK_G).to(tl.int64)
    l = tl.program_id(1).to(tl.int64) * BLOCK_L + tl.arange(0, BLOCK_L)
    valid_G1 = (g < G)[:, None]
    hard += b * hard_b
    ids += b * ids_b
    hard_GL = _assignment(hard, g, l, G, L, hard_g, hard_l)
    id_L = tl.load(ids + l * ids_l, mask=l < L, other=0)

    sum_GL = tl.zeros([BLOCK_G, BLOCK_L], tl.float32)
    count_L = tl.zeros([BLOCK_L], tl.float32)
    for start in range(0, L, BLOCK_J):
        j = start + tl.arange(0, BLOCK_J).to(tl.int64)
        hard_GJ = _assignment(hard, g, j, G, L, hard_g, hard_l)
        id_J = tl.load(ids + j * ids_l, mask=j < L, other=0)
        same_JL = ((id_J[:, None] == id_L[None, :]) & (j < L)[:, None]).to(tl.float32)
        sum_GL = dot_exact(hard_GJ, same_JL.to(tl.bfloat16), sum_GL)
        count_L += tl.sum(same_JL, axis=0)

    log_p_GL = _log_softmax(hard_GL, valid_G1)
    # Padding patches may have no mate at all.
    log_s_GL = _log_softmax(sum_GL / tl.maximum(count_L, 1.0)[None, :], valid_G1)
    term_GL = (tl.exp(log_s_GL) - tl.exp(log_p_GL)) * (log_s_GL - log_p_GL)
    tl.store(divergence + b * L + l, tl.sum(term_GL, axis=0), mask=l < L)


@tuned(*CONFIGS, key=["G", "L"])
@triton.jit
def _backward(
    grad_loss, hard, ids, grad_hard,
    G, L, scale, hard_b, hard_g, hard_l, ids_b, ids_l,
    BLOCK_G: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    """grad_hard [B, G, L], contiguous; grad_loss a float32 scalar."""
    b = tl.program_id(0).to(tl.int64)
    g = tl.arange(0, BLOCK_G).to(tl.int64)
    l = tl.program_id(1).to(tl.int64) * BLOCK_L + tl.arange(0, BLOCK_L)
    valid_G1 = (g < G)[:, None]
    valid_GL = valid_G1 & (l < L)[None, :]
    hard += b * hard_b
    ids += b * ids_b
    hard_GL = _assignment(hard, g, l, G, L, hard_g, hard_l)
    id_L = tl.load(ids + l * ids_l, mask=l < L, other=0)

    mean_h_GL = tl.zeros([BLOCK_G, BLOCK_L], tl.float32)
    mean_p_GL = tl.zeros([BLOCK_G, BLOCK_L], tl.float32)
    mean_log_p_GL = tl.zeros([BLOCK_G, BLOCK_L], tl.float32)
    count_L = tl.zeros([BLOCK_L], tl.float32)
    for start in range(0, L, BLOCK_J):
        j = start + tl.arange(0, BLOCK_J).to(tl.int64)
        hard_GJ = _assignment(hard, g, j, G, L, hard_g, hard_l)
        id_J = tl.load(ids + j * ids_l, mask=j < L, other=0)
        same_JL = ((id_J[:, None] == id_L[None, :]) & (j < L)[:, None]).to(tl.float32)
        log_p_GJ = _log_softmax(hard_GJ, valid_G1)
        zero_one_JL = same_JL.to(tl.bfloat16)
        mean_h_GL = dot_exact(hard_GJ, zero_one_JL, mean_h_GL)
        mean_p_GL = dot_exact(tl.exp(log_p_GJ), zero_one_JL, mean_p_GL)
        mean_log_p_GL = dot_exact(log_p_GJ, zero_one_JL, mean_log_p_GL)
        count_L += tl.sum(same_JL, axis=0)
    count_1L = tl.maximum(count_L, 1.0)[None, :]
    mean_p_GL /= count_1L
    mean_log_p_GL /= count_1L

    log_p_GL = _log_softmax(hard_GL, valid_G1)
    log_s_GL = _log_softmax(mean_h_GL / count_1L, valid_G1)
    p_GL, s_GL = tl.exp(log_p_GL), tl.exp(log_s_GL)
    apart_GL = log_s_GL - log_p_GL
    mean_apart_GL = log_s_GL - mean_log_p_GL
    own_GL = p_GL * (tl.sum(p_GL * apart_GL, axis=0)[None, :] - apart_GL) + p_GL
    shared_GL = s_GL * (mean_apart_GL - tl.sum(s_GL * mean_apart_GL, axis=0)[None, :]) - mean_p_GL
    # The s of both slopes cancel: -(s - p) of one's own and + s - P of the mean.
    grad_GL = (own_GL + shared_GL) * (tl.load(grad_loss) * scale)
    place_GL = (b * G + g[:, None]) * L + l[None, :]
    tl.store(grad_hard + place_GL, grad_GL.to(grad_hard.dtype.element_ty), mask=valid_GL)


def _scale(hard_BGL: Tensor) -> float:
    return 1 / (2 * hard_BGL.numel())


@torch.library.custom_op("segclip::superpixel_kl", mutates_args=())
def _superpixel_kl(hard_BGL: Tensor, superpixels_BL: Tensor) -> Tensor:
    batch, centers, patches = hard_BGL.shape
    divergence_BL = torch.empty((batch, patches), dtype=torch.float32, device=hard_BGL.device)
    with torch.cuda.device_of(hard_BGL):
        _forward[lambda meta: (batch, triton.cdiv(patches, meta["BLOCK_L"]))](
            hard_BGL, superpixels_BL, divergence_BL,
            centers, patches, *hard_BGL.stride(), *superpixels_BL.stride(),
            BLOCK_G=block_of_centers(centers),
        )  # fmt: skip
    return divergence_BL.sum() * _scale(hard_BGL)


@torch.library.custom_op("segclip::superpixel_kl_backward", mutates_args=())
def _superpixel_kl_backward(grad_loss: Tensor, hard_BGL: Tensor, superpixels_BL: Tensor) -> Tensor:
    batch, centers, patches = hard_BGL.shape
    grad_BGL = torch.empty_like(hard_BGL, memory_format=torch.contiguous_format)
    with torch.cuda.device_of(hard_BGL):
        _backward[lambda meta: (batch, triton.cdiv(patches, meta["BLOCK_L"]))](
            grad_loss, hard_BGL, superpixels_BL, grad_BGL,
            centers, patches, _scale(hard_BGL), *hard_BGL.stride(), *superpixels_BL.stride(),
            BLOCK_G=block_of_centers(centers),
        )  # fmt: skip
    return grad_BGL


@_superpixel_kl.register_fake
def _(hard_BGL: Tensor, superpixels_BL: Tensor) -> Tensor:
    return hard_BGL.new_empty((), dtype=torch.float32)


@_superpixel_kl_backward.register_fake
def _(grad_loss: Tensor, hard_BGL: Tensor, superpixels_BL: Tensor) -> Tensor:
    return torch.empty_like(hard_BGL, memory_format=torch.contiguous_format)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None]:
    return _superpixel_kl_backward(grad_loss, *ctx.saved_tensors), None


_superpixel_kl.register_autograd(_gradients, setup_context=_keep)


def superpixel_kl_triton(hard_BGL: Tensor, superpixels_BL: Tensor) -> Tensor:
    """``superpixel_kl`` by Triton kernels, for checked arguments."""
    loss: Tensor = _superpixel_kl(hard_BGL, superpixels_BL)
    return loss
