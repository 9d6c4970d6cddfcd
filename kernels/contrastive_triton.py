"""Triton kernels of the contrastive loss; formula and letters are in ``segclip.kernels.contrastive_tiles``.

One program computes one tile of the logits of a block, as a matrix product does, and uses it for both directions:

    forward    the log-sum-exp of each of its rows and of each of its columns: two vectors, which are merged over
               tiles afterwards. Nothing else of the tile leaves the chip.
    backward   the gradient of its logits, in the type of the features. A block's worth is stored; two matrix products
               turn it into gradients of the features.

Features are read in their own type and multiplied on tensor cores; sums, exponentials and logarithms are float32.
"""
# mypy: allow-untyped-defs

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from segclip.kernels.contrastive_tiles import Rectangle, Sums
from segclip.kernels.triton_common import dot, tuned

__all__ = ["TritonBlocks"]

TILES = {
    (torch.bfloat16, "forward"): {"TILE_B": 128, "TILE_N": 128, "BLOCK_E": 64},
    (torch.bfloat16, "backward"): {"TILE_B": 128, "TILE_N": 64, "BLOCK_E": 64},
    (torch.float32, "forward"): {"TILE_B": 64, "TILE_N": 64, "BLOCK_E": 32},
    (torch.float32, "backward"): {"TILE_B": 64, "TILE_N": 64, "BLOCK_E": 32},
}
"""The largest tiles of logits that stay in registers to the end. (float32 is not multiplied on tensor cores.)"""

# Tiles, so the order of sums, are the same for all: the choice changes no number. More stages hide more of the
# memory's latency and need more shared memory. With four warps instead of eight, registers spill.
CONFIGS = [triton.Config({}, num_warps=8, num_stages=stages) for stages in (3, 4, 2)]


@triton.jit
def _place(B, N, TILE_B: tl.constexpr, TILE_N: tl.constexpr):
    """This program's tile: its row and column among tiles. Programs that run at the same time lie close together."""
    tiles_B, tiles_N = tl.cdiv(B, TILE_B), tl.cdiv(N, TILE_N)
    number = tl.program_id(0)
    tile_b, tile_n = tl.swizzle2d(number // tiles_N, number % tiles_N, tiles_B, tiles_N, 8)
    return tile_b.to(tl.int64), tile_n.to(tl.int64)


@triton.jit
def _logits(
    image, text, scale, exclude, first_b, first_n,
    B, N, E, offset, image_b, image_e, text_n, text_e, exclude_b, exclude_n,
    HAS_EXCLUDE: tl.constexpr, TILE_B: tl.constexpr, TILE_N: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Float32 logits of a tile, -inf outside of the block and for what is left out; and which are of pairs."""
    # Offsets that can be large are int64 on single numbers and vectors; a whole tile of them would need twice as many
    # registers as its logits.
    local_b, local_n = tl.arange(0, TILE_B), tl.arange(0, TILE_N)
    b, n = first_b + local_b, first_n + local_n
    # Repeating the last row is as good as masking it, and cheaper.
    image += tl.minimum(b, B - 1)[:, None] * image_b
    text += tl.minimum(n, N - 1)[None, :] * text_n
    logits_BN = tl.zeros([TILE_B, TILE_N], tl.float32)
    for start in range(0, E, BLOCK_E):
        e = start + tl.arange(0, BLOCK_E).to(tl.int64)
        image_BE = tl.load(image + e[None, :] * image_e, mask=(e < E)[None, :], other=0.0)
        text_EN = tl.load(text + e[:, None] * text_e, mask=(e < E)[:, None], other=0.0)
        logits_BN = dot(image_BE, text_EN, logits_BN)
    logits_BN *= tl.load(scale)
    pair_BN = local_b[:, None] + (first_b + offset - first_n).to(tl.int32) == local_n[None, :]
    keep_BN = (b < B)[:, None] & (n < N)[None, :]
    if HAS_EXCLUDE:
        place_BN = b[:, None] * exclude_b + n[None, :] * exclude_n
        keep_BN &= (tl.load(exclude + place_BN, mask=keep_BN, other=1) == 0) | pair_BN
    return tl.where(keep_BN, logits_BN, float("-inf")), pair_BN


@triton.jit
def _log_sum_exp(logits_BN, axis: tl.constexpr):
    top = tl.max(logits_BN, axis=axis, keep_dims=True)
    top = tl.where(top == float("-inf"), 0.0, top)
    total = tl.sum(tl.exp(logits_BN - top), axis=axis, keep_dims=True)
    # An empty sum, not a logarithm of zero. A total of NaN stays one.
    found = tl.where(total == 0.0, float("-inf"), top + tl.log(tl.where(total == 0.0, 1.0, total)))
    return tl.reshape(found, [logits_BN.shape[1 - axis]])


@tuned(*CONFIGS, key=["E", "HAS_EXCLUDE"])
@triton.jit
def _forward(
    image, text, scale, own_row, own_column, exclude, row, column,
    B, N, E, offset, image_b, image_e, text_n, text_e, exclude_b, exclude_n,
    HAS_EXCLUDE: tl.constexpr, TILE_B: tl.constexpr, TILE_N: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """row [tiles of N, B], column [tiles of B, N]: log-sum-exps within each tile, float32, contiguous."""
    tile_b, tile_n = _place(B, N, TILE_B, TILE_N)
    b, n = tile_b * TILE_B + tl.arange(0, TILE_B), tile_n * TILE_N + tl.arange(0, TILE_N)
    logits_BN, _ = _logits(
        image, text, scale, exclude, tile_b * TILE_B, tile_n * TILE_N,
        B, N, E, offset, image_b, image_e, text_n, text_e, exclude_b, exclude_n,
        HAS_EXCLUDE, TILE_B, TILE_N, BLOCK_E,
    )  # fmt: skip
    own_B1 = tl.load(own_row + b, mask=b < B, other=0.0)[:, None]
    own_1N = tl.load(own_column + n, mask=n < N, other=0.0)[None, :]
    tl.store(row + tile_n * B + b, _log_sum_exp(logits_BN - own_B1, 1), mask=b < B)
    tl.store(column + tile_b * N + n, _log_sum_exp(logits_BN - own_1N, 0), mask=n < N)


@tuned(*CONFIGS, key=["E", "HAS_EXCLUDE"])
@triton.jit
def _backward(
    image, text, scale, own_row, own_column, exclude, row, column, grad_row, grad_column, grad,
    B, N, E, offset, image_b, image_e, text_n, text_e, exclude_b, exclude_n,
    HAS_EXCLUDE: tl.constexpr, TILE_B: tl.constexpr, TILE_N: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """grad [B, N], contiguous: gradient of the logits."""
    tile_b, tile_n = _place(B, N, TILE_B, TILE_N)
    first_b, first_n = tile_b * TILE_B, tile_n * TILE_N
    logits_BN, pair_BN = _logits(
        image, text, scale, exclude, first_b, first_n,
        B, N, E, offset, image_b, image_e, text_n, text_e, exclude_b, exclude_n,
        HAS_EXCLUDE, TILE_B, TILE_N, BLOCK_E,
    )  # fmt: skip
    local_b, local_n = tl.arange(0, TILE_B), tl.arange(0, TILE_N)
    b, n = first_b + local_b, first_n + local_n
    one_BN = tl.where(pair_BN, 1.0, 0.0)
    # Subtracted one after the other: the sum of the two would be rounded to the precision of the larger.
    log_BN = logits_BN - tl.load(own_row + b, mask=b < B, other=0.0)[:, None]
    log_BN -= tl.load(row + b, mask=b < B, other=0.0)[:, None]
    grad_BN = (tl.exp(log_BN) - one_BN) * tl.load(grad_row + b, mask=b < B, other=0.0)[:, None]
    log_BN = logits_BN - tl.load(own_column + n, mask=n < N, other=0.0)[None, :]
    log_BN -= tl.load(column + n, mask=n < N, other=0.0)[None, :]
    grad_BN += (tl.exp(log_BN) - one_BN) * tl.load(grad_column + n, mask=n < N, other=0.0)[None, :]
    grad += first_b * N + first_n
    inside_BN = (b < B)[:, None] & (n < N)[None, :]
    tl.store(
        grad + local_b[:, None] * N + local_n[None, :], grad_BN.to(grad.dtype.element_ty), mask=inside_BN
    )


class TritonBlocks:
    """The kernels, for float32 and bfloat16."""

    forward_side = 16384
    """128 tiles a side: 8 MiB for the vectors of each direction."""
    backward_side = 4096
    """32 MiB of bfloat16, which stay in the cache of a large card until both products have read them."""

    def log_sum_exps(self, block: Rectangle) -> tuple[Tensor, Tensor]:
        rows, columns = len(block.own_B), len(block.own_N)
        tile = TILES[block.image_BE.dtype, "forward"]
        row_TB = block.own_B.new_empty(triton.cdiv(columns, tile["TILE_N"]), rows)
        column_TN = block.own_N.new_empty(triton.cdiv(rows, tile["TILE_B"]), columns)
        _launch(_forward, tile, block, row_TB, column_TN)
        return row_TB.logsumexp(dim=0), column_TN.logsumexp(dim=0)

    def logit_gradients(self, block: Rectangle, sums: Sums) -> Tensor:
        grad_BN = block.image_BE.new_empty(len(block.own_B), len(block.own_N))
        tile = TILES[block.image_BE.dtype, "backward"]
        _launch(_backward, tile, block, *(vector.contiguous() for vector in sums), grad_BN)
        return grad_BN


def _launch(kernel: Any, tile: dict[str, int], block: Rectangle, *tensors: Tensor) -> None:
    rows, columns = len(block.own_B), len(block.own_N)
    # Without a table the kernel looks at none: any pointer will do.
    exclude = block.own_B[None] if block.exclude_BN is None else block.exclude_BN.view(torch.uint8)
    with torch.cuda.device_of(block.image_BE):
        kernel[(triton.cdiv(rows, tile["TILE_B"]) * triton.cdiv(columns, tile["TILE_N"]),)](
            block.image_BE, block.text_NE, block.scale, block.own_B.contiguous(), block.own_N.contiguous(),
            exclude, *tensors,
            rows, columns, block.image_BE.shape[1], block.offset,
            *block.image_BE.stride(), *block.text_NE.stride(), *exclude.stride(),
            HAS_EXCLUDE=block.exclude_BN is not None, **tile,
        )  # fmt: skip
