"""Triton kernels of ``patch_assignment``; formula and letters are in ``segclip.kernels.patch_assignment``.

Forward, two kernels: ``_assign`` computes logits, noise and the winning center of each patch, a tile of patches a
program; ``_regions`` counts and averages the values, a tile of channels a program.

Backward, two kernels, for the slopes R of the regions r, H of the assignment h and A of the logits a:

    ``_slopes``     dh[g, l] = H[g, l] + R[g] . v[l] / n[g] - [n[g] > 1] R[g] . r[g] / n[g]      n counts, at least 1
                    da[g, l] = A[g, l] + y[g, l] (dh[g, l] - sum_g' y[g', l] dh[g', l]) / t
    ``_gradients``  dq[g] = sum_l da[g, l] k[l]     dk[l] = sum_g da[g, l] q[g]     dv[l] = R[w] / n[w], w winner of l

The softmax y is computed anew from the logits, which are an output, and from noise that is drawn again; beside its
inputs and outputs the forward pass leaves one index a patch and one count a center. No kernel adds to memory that
another program adds to, so the same numbers come out each time.

Bytes a sample, least: forward k and v; backward k, v and their gradients; what has no channels is small beside
these. Keys and values are read once in each direction.

A column of logits that are not finite makes NaN of its assignment and of all regions of its sample, as in the
definition.
"""
# mypy: allow-untyped-defs
# ruff: noqa: E741 (l counts patches, as in the formula)

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from segclip.kernels.patch_assignment import GumbelKey
from segclip.kernels.triton_common import block_of_centers, dot, dot_exact, gumbel_noise, strides, tuned

__all__ = ["patch_assignment_triton"]

NO_NOISE, GIVEN_NOISE, KEYED_NOISE = (tl.constexpr(kind) for kind in range(3))
NOT_FINITE = tl.constexpr(-1)
"""Winner of a patch whose logits are not finite."""


# Configurations: every kernel here waits for memory, so what differs is how many bytes a program has under way (tile
# and stages) and how many programs share a multiprocessor (warps). Tiles of the axis that is summed have one size a
# kernel: BLOCK_C in ``_assign`` and ``_slopes``, BLOCK_L in ``_regions`` and ``_gradients``.


@triton.jit
def _noisy_softmax(
    logits_LG, noise, positions, b, g, l, G, L, seed, purpose, temperature, noise_b, noise_g, noise_l,
    NOISE: tl.constexpr,
):  # fmt: skip
    """Softmax over centers of (logits + noise) / temperature; zero at padding centers."""
    if NOISE == GIVEN_NOISE:
        inside_LG = (l < L)[:, None] & (g < G)[None, :]
        logits_LG += tl.load(
            noise + b * noise_b + g[None, :] * noise_g + l[:, None] * noise_l, mask=inside_LG, other=0.0
        )
    if NOISE == KEYED_NOISE:
        element_LG = (g[None, :] * L + l[:, None]).to(tl.int32)
        logits_LG += gumbel_noise(seed, purpose, tl.load(positions + b), element_LG)
    # Finite: minus infinity less minus infinity is not a number.
    logits_LG = tl.where((g < G)[None, :], logits_LG / temperature, -1e30)
    power_LG = tl.exp(logits_LG - tl.max(logits_LG, axis=1)[:, None])
    return power_LG / tl.sum(power_LG, axis=1)[:, None]


@tuned(
    triton.Config({"BLOCK_L": 64, "BLOCK_C": 64}, num_warps=4, num_stages=3),
    triton.Config({"BLOCK_L": 32, "BLOCK_C": 64}, num_warps=2, num_stages=4),
    triton.Config({"BLOCK_L": 128, "BLOCK_C": 64}, num_warps=4, num_stages=3),
    key=["G", "L", "C"],
)
@triton.jit
def _assign(
    query, key, noise, positions, logits, hard, winner,
    G, L, C, seed, purpose, temperature,
    query_b, query_g, query_c, key_b, key_l, key_c, noise_b, noise_g, noise_l,
    NOISE: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """logits and hard [B, G, L] float32, winner [B, L] int32, all contiguous."""
    b = tl.program_id(0).to(tl.int64)
    l = tl.program_id(1).to(tl.int64) * BLOCK_L + tl.arange(0, BLOCK_L)
    g = tl.arange(0, BLOCK_G).to(tl.int64)
    query += b * query_b
    key += b * key_b
    logits_LG = tl.zeros([BLOCK_L, BLOCK_G], tl.float32)
    for start in range(0, C, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C).to(tl.int64)
        key_LC = tl.load(
            key + l[:, None] * key_l + c[None, :] * key_c, mask=(l < L)[:, None] & (c < C)[None, :], other=0.0
        )
        query_CG = tl.load(
            query + c[:, None] * query_c + g[None, :] * query_g,
            mask=(c < C)[:, None] & (g < G)[None, :],
            other=0.0,
        )
        logits_LG = dot(key_LC, query_CG, logits_LG)

    soft_LG = _noisy_softmax(
        logits_LG, noise, positions, b, g, l, G, L, seed, purpose, temperature, noise_b, noise_g, noise_l, NOISE
    )  # fmt: skip
    total_L = tl.sum(soft_LG, axis=1)
    finite_L = total_L == total_L
    winner_L = tl.argmax(tl.where(finite_L[:, None], soft_LG, 0.0), axis=1)
    winner_L = tl.where(finite_L, winner_L, NOT_FINITE)
    hard_LG = tl.where(finite_L[:, None], (g[None, :] == winner_L[:, None]).to(tl.float32), float("nan"))
    place_LG = (b * G + g[None, :]) * L + l[:, None]
    inside_LG = (l < L)[:, None] & (g < G)[None, :]
    tl.store(logits + place_LG, logits_LG, mask=inside_LG)
    tl.store(hard + place_LG, hard_LG, mask=inside_LG)
    tl.store(winner + b * L + l, winner_L, mask=l < L)


@tuned(
    triton.Config({"BLOCK_L": 32, "BLOCK_C": 128}, num_warps=4, num_stages=3),
    triton.Config({"BLOCK_L": 32, "BLOCK_C": 64}, num_warps=2, num_stages=4),
    triton.Config({"BLOCK_L": 32, "BLOCK_C": 128}, num_warps=8, num_stages=4),
    key=["G", "L", "C"],
)
@triton.jit
def _regions(
    winner, value, regions, count,
    G, L, C, value_b, value_l, value_c,
    BLOCK_G: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """regions [B, G, C] in the type of value, count [B, G] float32 (at least 1), both contiguous."""
    b = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    g = tl.arange(0, BLOCK_G).to(tl.int64)
    sum_GC = tl.zeros([BLOCK_G, BLOCK_C], tl.float32)
    count_G = tl.zeros([BLOCK_G], tl.float32)
    bad_L = tl.zeros([BLOCK_L], tl.int32)
    for start in range(0, L, BLOCK_L):
        l = start + tl.arange(0, BLOCK_L).to(tl.int64)
        winner_L = tl.load(winner + b * L + l, mask=l < L, other=BLOCK_G)
        value_LC = tl.load(
            value + b * value_b + l[:, None] * value_l + c[None, :] * value_c,
            mask=(l < L)[:, None] & (c < C)[None, :],
            other=0.0,
        )
        hard_GL = (g[:, None] == winner_L[None, :]).to(tl.float32)
        sum_GC = dot(hard_GL.to(value_LC.dtype), value_LC, sum_GC)
        count_G += tl.sum(hard_GL, axis=1)
        bad_L |= (winner_L == NOT_FINITE).to(tl.int32)
    count_G = tl.maximum(count_G, 1.0)
    regions_GC = tl.where(tl.max(bad_L, axis=0) > 0, float("nan"), sum_GC / count_G[:, None])
    tl.store(
        regions + (b * G + g[:, None]) * C + c[None, :],
        regions_GC.to(regions.dtype.element_ty),
        mask=(g < G)[:, None] & (c < C)[None, :],
    )
    if tl.program_id(1) == 0:
        tl.store(count + b * G + g, count_G, mask=g < G)


@tuned(
    triton.Config({"BLOCK_L": 64, "BLOCK_C": 64}, num_warps=4, num_stages=3),
    triton.Config({"BLOCK_L": 32, "BLOCK_C": 64}, num_warps=2, num_stages=4),
    triton.Config({"BLOCK_L": 128, "BLOCK_C": 64}, num_warps=4, num_stages=3),
    key=["G", "L", "C"],
)
@triton.jit
def _slopes(
    grad_regions, grad_hard, grad_logits, value, regions, count, logits, noise, positions, slope,
    G, L, C, seed, purpose, temperature,
    value_b, value_l, value_c, noise_b, noise_g, noise_l,
    NOISE: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """slope [B, G, L] float32: gradient of the logits. Everything but value and noise is contiguous."""
    b = tl.program_id(0).to(tl.int64)
    l = tl.program_id(1).to(tl.int64) * BLOCK_L + tl.arange(0, BLOCK_L)
    g = tl.arange(0, BLOCK_G).to(tl.int64)
    through_LG = tl.zeros([BLOCK_L, BLOCK_G], tl.float32)
    own_G = tl.zeros([BLOCK_G], tl.float32)
    for start in range(0, C, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C).to(tl.int64)
        value_LC = tl.load(
            value + b * value_b + l[:, None] * value_l + c[None, :] * value_c,
            mask=(l < L)[:, None] & (c < C)[None, :],
            other=0.0,
        )
        place_CG = (b * G + g[None, :]) * C + c[:, None]
        inside_CG = (c < C)[:, None] & (g < G)[None, :]
        grad_CG = tl.load(grad_regions + place_CG, mask=inside_CG, other=0.0)
        region_CG = tl.load(regions + place_CG, mask=inside_CG, other=0.0)
        through_LG = dot(value_LC, grad_CG, through_LG)
        own_G += tl.sum(grad_CG.to(tl.float32) * region_CG.to(tl.float32), axis=0)

    count_G = tl.load(count + b * G + g, mask=g < G, other=1.0)
    own_G = tl.where(count_G > 1.5, own_G, 0.0)
    place_LG = (b * G + g[None, :]) * L + l[:, None]
    inside_LG = (l < L)[:, None] & (g < G)[None, :]
    grad_hard_LG = tl.load(grad_hard + place_LG, mask=inside_LG, other=0.0)
    grad_hard_LG += (through_LG - own_G[None, :]) / count_G[None, :]

    logits_LG = tl.load(logits + place_LG, mask=inside_LG, other=0.0)
    soft_LG = _noisy_softmax(
        logits_LG, noise, positions, b, g, l, G, L, seed, purpose, temperature, noise_b, noise_g, noise_l, NOISE
    )  # fmt: skip
    mean_L = tl.sum(soft_LG * grad_hard_LG, axis=1)
    slope_LG = tl.load(grad_logits + place_LG, mask=inside_LG, other=0.0)
    slope_LG += soft_LG * (grad_hard_LG - mean_L[:, None]) / temperature
    tl.store(slope + place_LG, slope_LG, mask=inside_LG)


@tuned(
    triton.Config({"BLOCK_L": 32, "BLOCK_C": 64}, num_warps=4, num_stages=3),
    triton.Config({"BLOCK_L": 32, "BLOCK_C": 128}, num_warps=4, num_stages=3),
    triton.Config({"BLOCK_L": 32, "BLOCK_C": 256}, num_warps=8, num_stages=2),
    key=["G", "L", "C"],
)
@triton.jit
def _gradients(
    slope, grad_regions, count, winner, query, key, grad_query, grad_key, grad_value,
    G, L, C, query_b, query_g, query_c, key_b, key_l, key_c,
    BLOCK_G: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """grad_query [B, G, C], grad_key and grad_value [B, L, C]; everything but query and key is contiguous."""
    b = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    g = tl.arange(0, BLOCK_G).to(tl.int64)
    inside_GC = (g < G)[:, None] & (c < C)[None, :]
    query_GC = tl.load(
        query + b * query_b + g[:, None] * query_g + c[None, :] * query_c, mask=inside_GC, other=0.0
    )
    grad_query_GC = tl.zeros([BLOCK_G, BLOCK_C], tl.float32)
    for start in range(0, L, BLOCK_L):
        l = start + tl.arange(0, BLOCK_L).to(tl.int64)
        inside_LC = (l < L)[:, None] & (c < C)[None, :]
        place_LC = (b * L + l[:, None]) * C + c[None, :]
        slope_GL = tl.load(
            slope + (b * G + g[:, None]) * L + l[None, :], mask=(g < G)[:, None] & (l < L)[None, :], other=0.0
        )
        key_LC = tl.load(key + b * key_b + l[:, None] * key_l + c[None, :] * key_c, mask=inside_LC, other=0.0)
        grad_query_GC = dot_exact(slope_GL, key_LC, grad_query_GC)
        grad_key_LC = dot_exact(tl.trans(slope_GL), query_GC, tl.zeros([BLOCK_L, BLOCK_C], tl.float32))
        tl.store(grad_key + place_LC, grad_key_LC.to(grad_key.dtype.element_ty), mask=inside_LC)

        winner_L = tl.maximum(tl.load(winner + b * L + l, mask=l < L, other=0), 0).to(tl.int64)
        count_L = tl.load(count + b * G + winner_L)
        grad_LC = tl.load(
            grad_regions + (b * G + winner_L[:, None]) * C + c[None, :], mask=inside_LC, other=0.0
        )
        grad_value_LC = grad_LC.to(tl.float32) / count_L[:, None]
        tl.store(grad_value + place_LC, grad_value_LC.to(grad_value.dtype.element_ty), mask=inside_LC)
    tl.store(
        grad_query + (b * G + g[:, None]) * C + c[None, :],
        grad_query_GC.to(grad_query.dtype.element_ty),
        mask=inside_GC,
    )


def _noise_arguments(noise_BGL: Tensor | None, positions_B: Tensor | None, like: Tensor) -> dict[str, Any]:
    """Noise as the kernels take it; a pointer that is not used points at ``like``."""
    noise_b, noise_g, noise_l = noise_BGL.stride() if noise_BGL is not None else (0, 0, 0)
    kind = GIVEN_NOISE if noise_BGL is not None else KEYED_NOISE if positions_B is not None else NO_NOISE
    return {
        "noise": noise_BGL if noise_BGL is not None else like,
        "positions": positions_B if positions_B is not None else like,
        "noise_b": noise_b,
        "noise_g": noise_g,
        "noise_l": noise_l,
        "NOISE": kind.value,
    }


@torch.library.custom_op("segclip::patch_assignment", mutates_args=())
def _patch_assignment(
    query_BGC: Tensor,
    key_BLC: Tensor,
    value_BLC: Tensor,
    noise_BGL: Tensor | None,
    positions_B: Tensor | None,
    seed: int,
    purpose: int,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    (batch, centers, _), (_, patches, width) = query_BGC.shape, key_BLC.shape
    regions_BGC, hard_BGL, logits_BGL, winner_BL, count_BG = _empty(query_BGC, key_BLC, value_BLC)
    block = block_of_centers(centers)
    with torch.cuda.device_of(query_BGC):
        _assign[lambda meta: (batch, triton.cdiv(patches, meta["BLOCK_L"]))](
            query=query_BGC, key=key_BLC, logits=logits_BGL, hard=hard_BGL, winner=winner_BL,
            G=centers, L=patches, C=width, seed=seed, purpose=purpose, temperature=temperature,
            **strides("query", query_BGC, "bgc"), **strides("key", key_BLC, "blc"),
            **_noise_arguments(noise_BGL, positions_B, logits_BGL), BLOCK_G=block,
        )  # fmt: skip
        width = value_BLC.shape[2]
        _regions[lambda meta: (batch, triton.cdiv(width, meta["BLOCK_C"]))](
            winner=winner_BL, value=value_BLC, regions=regions_BGC, count=count_BG,
            G=centers, L=patches, C=width, **strides("value", value_BLC, "blc"), BLOCK_G=block,
        )  # fmt: skip
    return regions_BGC, hard_BGL, logits_BGL, winner_BL, count_BG


@torch.library.custom_op("segclip::patch_assignment_backward", mutates_args=())
def _patch_assignment_backward(
    grad_regions_BGC: Tensor,
    grad_hard_BGL: Tensor,
    grad_logits_BGL: Tensor,
    query_BGC: Tensor,
    key_BLC: Tensor,
    value_BLC: Tensor,
    noise_BGL: Tensor | None,
    positions_B: Tensor | None,
    regions_BGC: Tensor,
    logits_BGL: Tensor,
    winner_BL: Tensor,
    count_BG: Tensor,
    seed: int,
    purpose: int,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, centers, patches = logits_BGL.shape
    width = value_BLC.shape[2]
    grad_regions_BGC = grad_regions_BGC.contiguous()
    slope_BGL = torch.empty_like(logits_BGL)
    grads = _empty_gradients(query_BGC, key_BLC, value_BLC)
    block = block_of_centers(centers)
    with torch.cuda.device_of(query_BGC):
        _slopes[lambda meta: (batch, triton.cdiv(patches, meta["BLOCK_L"]))](
            grad_regions=grad_regions_BGC, grad_hard=grad_hard_BGL.contiguous(),
            grad_logits=grad_logits_BGL.contiguous(), value=value_BLC, regions=regions_BGC, count=count_BG,
            logits=logits_BGL, slope=slope_BGL,
            G=centers, L=patches, C=width, seed=seed, purpose=purpose, temperature=temperature,
            **strides("value", value_BLC, "blc"), **_noise_arguments(noise_BGL, positions_B, logits_BGL),
            BLOCK_G=block,
        )  # fmt: skip
        _gradients[lambda meta: (batch, triton.cdiv(width, meta["BLOCK_C"]))](
            slope=slope_BGL, grad_regions=grad_regions_BGC, count=count_BG, winner=winner_BL,
            query=query_BGC, key=key_BLC, grad_query=grads[0], grad_key=grads[1], grad_value=grads[2],
            G=centers, L=patches, C=width,
            **strides("query", query_BGC, "bgc"), **strides("key", key_BLC, "blc"), BLOCK_G=block,
        )  # fmt: skip
    return grads


def _empty(query_BGC: Tensor, key_BLC: Tensor, value_BLC: Tensor) -> tuple[Tensor, ...]:
    """Memory for regions, hard, logits, winner and count."""
    batch, centers, _ = query_BGC.shape
    patches = key_BLC.shape[1]
    return (
        value_BLC.new_empty((batch, centers, value_BLC.shape[2])),
        query_BGC.new_empty((batch, centers, patches), dtype=torch.float32),
        query_BGC.new_empty((batch, centers, patches), dtype=torch.float32),
        query_BGC.new_empty((batch, patches), dtype=torch.int32),
        query_BGC.new_empty((batch, centers), dtype=torch.float32),
    )


def _empty_gradients(*inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs)
    return query, key, value


@_patch_assignment.register_fake
def _(query_BGC, key_BLC, value_BLC, noise_BGL, positions_B, seed, purpose, temperature):
    return _empty(query_BGC, key_BLC, value_BLC)


@_patch_assignment_backward.register_fake
def _(grad_regions_BGC, grad_hard_BGL, grad_logits_BGL, query_BGC, key_BLC, value_BLC, *_):
    return _empty_gradients(query_BGC, key_BLC, value_BLC)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.seed, ctx.purpose, ctx.temperature = inputs
    regions_BGC, _, logits_BGL, winner_BL, count_BG = output
    ctx.save_for_backward(*tensors, regions_BGC, logits_BGL, winner_BL, count_BG)
    ctx.mark_non_differentiable(winner_BL, count_BG)


def _differentiate(
    ctx: Any, grad_regions_BGC: Tensor, grad_hard_BGL: Tensor, grad_logits_BGL: Tensor, *_: Any
) -> tuple[Tensor | None, ...]:
    gradients = _patch_assignment_backward(
        grad_regions_BGC, grad_hard_BGL, grad_logits_BGL,
        *ctx.saved_tensors, ctx.seed, ctx.purpose, ctx.temperature,
    )  # fmt: skip
    return (*gradients, None, None, None, None, None)


_patch_assignment.register_autograd(_differentiate, setup_context=_keep)


def patch_assignment_triton(
    query_BGC: Tensor,
    key_BLC: Tensor,
    value_BLC: Tensor,
    noise: Tensor | GumbelKey | None,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Regions, hard assignment and logits by Triton kernels, for checked arguments."""
    given_BGL = positions_B = None
    seed = purpose = 0
    if isinstance(noise, GumbelKey):
        # As the schema's signed 64-bit integer: the generator takes its two halves.
        seed = noise.seed - 2**64 if noise.seed >= 2**63 else noise.seed
        purpose, positions_B = int(noise.purpose), noise.positions_B.contiguous()
    else:
        given_BGL = noise
    regions_BGC, hard_BGL, logits_BGL, _, _ = _patch_assignment(
        query_BGC, key_BLC, value_BLC, given_BGL, positions_B, seed, purpose, temperature
    )
    return regions_BGC, hard_BGL, logits_BGL
