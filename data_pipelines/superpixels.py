"""Superpixels: compute a map of region ids, and reduce it to one id per patch.

Shapes: H, W picture size in pixels; h, w grid of patches; L = h * w.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

__all__ = ["PatchLabelRule", "SuperpixelMethod", "compute_superpixels", "patch_labels"]

PatchLabelRule = Literal["vote", "mean"]


class SuperpixelMethod(BaseModel):
    """How superpixel maps are computed; kept in the manifest of the shards that hold them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Literal["slic"] = Field("slic", description="Algorithm: SLIC as fast-slic implements it.")
    segments: int = Field(12, ge=2, le=65535, description="Regions asked for; the result may hold a few fewer.")
    compactness: float = Field(20.0, gt=0, description="Weight of distance against colour: higher is rounder.")
    min_size_factor: float = Field(0.1, ge=0, le=1, description="Regions under this share of the mean size are merged.")
    shrink: int = Field(
        1, ge=1, le=8, description="Compute on a picture smaller by this factor and enlarge the map by nearest."
    )


def compute_superpixels(picture_HW3: NDArray[np.uint8], method: SuperpixelMethod) -> NDArray[np.int16]:
    """Region ids of a picture.

    Args:
        picture_HW3: uint8 RGB [H, W, 3].
        method: algorithm and parameters.

    Returns:
        int16 [H, W], ids from 0.
    """
    height, width = picture_HW3.shape[:2]
    if method.shrink > 1:
        # A box mean also takes out grain that would fray the borders of regions.
        rows, columns = height // method.shrink, width // method.shrink
        if min(rows, columns) < 4:
            raise ValueError(f"a picture of {width} x {height} cannot be shrunk by {method.shrink} for superpixels")
        cut = picture_HW3[: rows * method.shrink, : columns * method.shrink]
        blocks = cut.reshape(rows, method.shrink, columns, method.shrink, 3)
        small = np.ascontiguousarray(blocks.mean(axis=(1, 3), dtype=np.float32).astype(np.uint8))
        labels = _slic()(small, method)
        row_of = np.minimum(np.arange(height) // method.shrink, rows - 1)
        column_of = np.minimum(np.arange(width) // method.shrink, columns - 1)
        return labels[row_of[:, None], column_of]
    return _slic()(np.ascontiguousarray(picture_HW3), method)


@lru_cache(maxsize=1)
def _slic() -> Callable[[NDArray[np.uint8], SuperpixelMethod], NDArray[np.int16]]:
    """The fastest SLIC of this machine; scikit-image's, with one warning, where fast-slic is not installed."""
    try:
        import fast_slic
    except ImportError:
        warnings.warn(
            "fast-slic is not installed: superpixels are computed by scikit-image, about 15 times slower "
            "(pip install 'cython<3' numpy setuptools wheel && pip install --no-build-isolation fast-slic)",
            stacklevel=2,
        )
        return _scikit_slic
    if _has_avx2():
        import fast_slic.avx2

        solver = fast_slic.avx2.SlicAvx2
    else:
        solver = fast_slic.Slic

    def run(picture_HW3: NDArray[np.uint8], method: SuperpixelMethod) -> NDArray[np.int16]:
        slic = solver(
            num_components=method.segments, compactness=method.compactness, min_size_factor=method.min_size_factor
        )
        return np.asarray(slic.iterate(picture_HW3), dtype=np.int16)

    return run


def _has_avx2() -> bool:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            return any(line.startswith("flags") and " avx2" in line for line in file)
    except OSError:  # not Linux: the portable class works everywhere
        return False


def _scikit_slic(picture_HW3: NDArray[np.uint8], method: SuperpixelMethod) -> NDArray[np.int16]:
    from skimage.segmentation import slic

    labels = slic(picture_HW3, n_segments=method.segments, compactness=method.compactness, start_label=0)
    return np.asarray(labels, dtype=np.int16)


def patch_labels(
    map_HW: NDArray[np.integer], grid: tuple[int, int], rule: PatchLabelRule = "vote"
) -> NDArray[np.int64]:
    """One superpixel id for each patch.

    Args:
        map_HW: ids [H, W]; the grid must divide H and W.
        grid: (h, w) patches.
        rule: ``vote`` takes the id most pixels of the patch have, the lowest on a tie; ``mean`` the mean of the ids
            cut to an integer, which is what the original code does and which makes ids up where regions meet.

    Returns:
        int64 [h * w], row by row.
    """
    height, width = map_HW.shape
    if height % grid[0] or width % grid[1]:
        raise ValueError(f"a grid of {grid[0]} x {grid[1]} patches does not divide a map of {height} x {width} pixels")
    patches = grid[0] * grid[1]
    in_patch_LP = (
        map_HW.reshape(grid[0], height // grid[0], grid[1], width // grid[1]).swapaxes(1, 2).reshape(patches, -1)
    )
    if rule == "mean":
        # As the original: float32 mean, then truncation.
        return in_patch_LP.astype(np.float32).mean(axis=1).astype(np.int64)
    ids = int(map_HW.max()) + 1
    if ids > 512:  # keep the histogram small when ids are sparse
        names, dense = np.unique(in_patch_LP, return_inverse=True)
        return names[_vote(dense.reshape(patches, -1), len(names))].astype(np.int64)
    return _vote(in_patch_LP, ids)


def _vote(in_patch_LP: NDArray[np.integer], ids: int) -> NDArray[np.int64]:
    patches = in_patch_LP.shape[0]
    cells_LP = in_patch_LP + (np.arange(patches, dtype=np.int64) * ids)[:, None]
    counts_LK = np.bincount(cells_LP.ravel(), minlength=patches * ids).reshape(patches, ids)
    return counts_LK.argmax(axis=1)
