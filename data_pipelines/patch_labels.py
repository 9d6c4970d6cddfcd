"""One superpixel id for each patch, of a map of ids.

Shapes: H, W picture size in pixels; h, w grid of patches; N patches of all maps, P pixels of a patch.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["PatchLabelRule", "patch_labels"]

PatchLabelRule = Literal["vote", "mean"]
DENSE_IDS = 512  # up to this many ids votes are counted in a table


def patch_labels(
    maps_BHW: NDArray[np.integer], grid: tuple[int, int], rule: PatchLabelRule = "vote"
) -> NDArray[np.int64]:
    """One superpixel id for each patch.

    Args:
        maps_BHW: ids [..., H, W]; the grid must divide H and W.
        grid: (h, w) patches.
        rule: ``vote`` takes the id most pixels of the patch have, the lowest on a tie; ``mean`` the mean of
            the ids cut to an integer, which is what the original code does and which makes ids up where
            regions meet.

    Returns:
        int64 [..., h * w], row by row.
    """
    *batch, height, width = maps_BHW.shape
    if height % grid[0] or width % grid[1]:
        raise ValueError(
            f"a grid of {grid[0]} x {grid[1]} patches does not divide a map of {height} x {width} pixels"
        )
    tall, wide = height // grid[0], width // grid[1]
    patches = math.prod(batch) * grid[0] * grid[1]
    if rule == "vote" and (ids := int(maps_BHW.max()) + 1) <= DENSE_IDS:
        labels_BN = [_dense_vote(map_HW, grid, ids) for map_HW in maps_BHW.reshape(-1, height, width)]
        return np.concatenate(labels_BN).reshape(*batch, grid[0] * grid[1])
    in_patch_NP = (
        maps_BHW.reshape(-1, grid[0], tall, grid[1], wide).swapaxes(2, 3).reshape(patches, tall * wide)
    )
    if rule == "mean":
        # As the original: float32 mean, then truncation.
        labels_N = in_patch_NP.astype(np.float32).mean(axis=1).astype(np.int64)
    else:
        labels_N = _vote(in_patch_NP)
    return labels_N.reshape(*batch, grid[0] * grid[1])


def _vote(in_patch_NP: NDArray[np.integer]) -> NDArray[np.int64]:
    """The most frequent value of each row, the lowest on a tie: int64 [N]."""
    # Sort each row; the longest run of equal values is the vote. Slower than counting, but no table of rows x ids.
    ordered_NP = np.sort(in_patch_NP, axis=1)
    run_NP = np.ones(ordered_NP.shape, dtype=np.int64)
    for column in range(1, ordered_NP.shape[1]):
        same_N = ordered_NP[:, column] == ordered_NP[:, column - 1]
        run_NP[:, column] += np.where(same_N, run_NP[:, column - 1], 0)
    winners_N1 = run_NP.argmax(axis=1)[:, None]
    return np.take_along_axis(ordered_NP, winners_N1, axis=1)[:, 0].astype(np.int64)


def _dense_vote(map_HW: NDArray[np.integer], grid: tuple[int, int], ids: int) -> NDArray[np.int64]:
    """The most frequent id of each patch of one map, the lowest on a tie: int64 [h * w].

    One map at a time, so that its cells stay in the processor's cache.
    """
    room = 1 << (ids - 1).bit_length()
    cells_HW = map_HW + _first_cells(map_HW.shape[0], map_HW.shape[1], grid, room)
    counts_NK = np.bincount(cells_HW.ravel(), minlength=grid[0] * grid[1] * room).reshape(-1, room)
    return counts_NK.argmax(axis=1)


@lru_cache(maxsize=16)
def _first_cells(height: int, width: int, grid: tuple[int, int], room: int) -> NDArray[np.int64]:
    """For each pixel the first of the ``room`` cells in which its patch counts: int64 [H, W]."""
    rows_H, columns_W = np.arange(height) // (height // grid[0]), np.arange(width) // (width // grid[1])
    return (rows_H[:, None] * grid[1] + columns_W) * room
