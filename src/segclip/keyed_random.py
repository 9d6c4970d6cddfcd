"""Counter-based random numbers: every draw is a function of (seed, purpose, position, element).

Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), written once for NumPy and
once for torch; Triton's own ``tl.philox`` is the same function, so a kernel can draw the noise that these return.

A position is the global index of a sample in the stream of a whole run (or of an epoch, a shard, ...). Because no
state is carried from draw to draw, a result depends neither on how samples are split over ranks, workers or
micro-batches, nor on where a run was interrupted, and a recomputed forward pass sees the same noise.

Layout of one draw: key = (seed low 32 bits, seed high 32 bits), counter = (element // 4, position low, position
high, purpose); element ``e`` takes word ``e % 4`` of the four that Philox returns.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "Purpose",
    "gumbel",
    "permutation",
    "philox_numpy",
    "philox_torch",
    "uniform",
    "uniform_numpy",
]

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
MASK_32 = 0xFFFFFFFF
ROUNDS = 10
# 23 random bits and half a step: exact in float32 and never 0 or 1, so that log() of it is finite.
UNIFORM_STEP = 2.0**-23


class Purpose(IntEnum):
    """What a draw is for. Two purposes never share numbers; values are part of the checkpointed semantics."""

    GUMBEL_MAIN = 1
    GUMBEL_MASKED = 2
    MASK = 3
    TEXT_MASK = 4
    DROP_PATH = 5
    PATCH_DROPOUT = 6
    SHARD_ORDER = 16
    SHUFFLE = 17
    CROP = 18
    FLIP = 19
    CAPTION = 20
    SCENE = 32
    INIT = 48
    BOOTSTRAP = 64


def philox_torch(
    seed: int, counter: tuple[Tensor, Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox-4x32-10 on int64 tensors that hold 32-bit words.

    Args:
        seed: 64-bit key.
        counter: four broadcastable int64 tensors with values in [0, 2**32).

    Returns:
        Four int64 tensors of the broadcast shape with values in [0, 2**32).
    """
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    key_0, key_1 = seed & MASK_32, (seed >> 32) & MASK_32
    for _ in range(ROUNDS):
        # int64 wraps modulo 2**64 and keeps all 64 product bits; the mask removes the sign extension of the shift.
        product_0, product_1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((product_1 >> 32) & MASK_32) ^ c1 ^ key_0,
            product_1 & MASK_32,
            ((product_0 >> 32) & MASK_32) ^ c3 ^ key_1,
            product_0 & MASK_32,
        )
        key_0, key_1 = (key_0 + WEYL[0]) & MASK_32, (key_1 + WEYL[1]) & MASK_32
    return c0, c1, c2, c3


def philox_numpy(seed: int, counter: tuple[NDArray[np.uint64], ...]) -> tuple[NDArray[np.uint64], ...]:
    """Philox-4x32-10 on uint64 arrays that hold 32-bit words; same function as ``philox_torch``."""
    c0, c1, c2, c3 = np.broadcast_arrays(*counter)
    key_0, key_1 = seed & MASK_32, (seed >> 32) & MASK_32
    mask, shift = np.uint64(MASK_32), np.uint64(32)
    for _ in range(ROUNDS):
        product_0, product_1 = c0 * np.uint64(MULTIPLIERS[0]), c2 * np.uint64(MULTIPLIERS[1])
        c0, c1, c2, c3 = (
            (product_1 >> shift) ^ c1 ^ np.uint64(key_0),
            product_1 & mask,
            (product_0 >> shift) ^ c3 ^ np.uint64(key_1),
            product_0 & mask,
        )
        key_0, key_1 = (key_0 + WEYL[0]) & MASK_32, (key_1 + WEYL[1]) & MASK_32
    return c0, c1, c2, c3


def uniform(seed: int, purpose: int, positions: Tensor, count: int) -> Tensor:
    """``count`` uniform numbers in (0, 1) for each position.

    Args:
        seed: seed of the run.
        purpose: a ``Purpose``.
        positions: int64 [B], global sample indices.
        count: numbers per position.

    Returns:
        float32 [B, count] on the device of ``positions``.
    """
    blocks = torch.arange((count + 3) // 4, device=positions.device)[None, :]
    positions_B1 = positions.long()[:, None]
    words = philox_torch(
        seed,
        (
            blocks,
            positions_B1 & MASK_32,
            (positions_B1 >> 32) & MASK_32,
            torch.full_like(blocks, int(purpose)),
        ),
    )
    bits = torch.stack(words, dim=-1).flatten(1)[:, :count]
    return ((bits >> 9).float() + 0.5) * UNIFORM_STEP


def uniform_numpy(
    seed: int, purpose: int, positions: int | NDArray[np.integer], count: int
) -> NDArray[np.float32]:
    """NumPy twin of ``uniform``, bit for bit.

    Args:
        positions: one index or an int array [B].

    Returns:
        float32 [B, count]; B is 1 for a single index.
    """
    bits = _words_numpy(seed, purpose, positions, count)
    return ((bits >> np.uint64(9)).astype(np.float32) + np.float32(0.5)) * np.float32(UNIFORM_STEP)


def _words_numpy(
    seed: int, purpose: int, positions: int | NDArray[np.integer], count: int
) -> NDArray[np.uint64]:
    position_B1 = np.atleast_1d(np.asarray(positions)).astype(np.uint64)[:, None]
    blocks = np.arange((count + 3) // 4, dtype=np.uint64)[None, :]
    words = philox_numpy(
        seed,
        (
            blocks,
            position_B1 & np.uint64(MASK_32),
            position_B1 >> np.uint64(32),
            np.full_like(blocks, int(purpose)),
        ),
    )
    return np.stack(words, axis=-1).reshape(position_B1.shape[0], -1)[:, :count]


def gumbel(seed: int, purpose: int, positions: Tensor, count: int) -> Tensor:
    """``count`` standard Gumbel numbers for each position: float32 [B, count]."""
    return -torch.log(-torch.log(uniform(seed, purpose, positions, count)))


def permutation(seed: int, purpose: int, position: int, n: int) -> NDArray[np.int64]:
    """A permutation of ``range(n)`` keyed by (seed, purpose, position): int64 [n]."""
    words = _words_numpy(seed, purpose, position, 2 * n)[0]
    # 64-bit sort keys: ties, which would favour low indices, do not occur in practice.
    return np.argsort((words[0::2] << np.uint64(32)) | words[1::2], kind="stable").astype(np.int64)
