"""Superpixels: compute a map of region ids, and reduce it to one id per patch.

Shapes: H, W picture size in pixels; h, w grid of patches; L = h * w.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

__all__ = [
    "PatchLabelRule",
    "SuperpixelMethod",
    "compute_superpixels",
    "method_from_text",
    "patch_labels",
]

PatchLabelRule = Literal["vote", "mean"]
MOST_SEGMENTS = 32767  # so that ids fit into int16
DENSE_IDS = 512  # up to this many ids votes are counted in a table
# fast-slic divides by the distance between seeds in whole pixels: on fewer pixels it kills the process (SIGFPE).
LEAST_SIDE = 4


class SuperpixelMethod(BaseModel):
    """How superpixel maps are computed; kept in the manifest of the shards that hold them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Literal["slic", "felzenszwalb"] = Field(
        default="slic",
        description="SLIC as fast-slic implements it, or Felzenszwalb's graph cuts (the paper's; scikit-image).",
    )
    segments: int = Field(
        default=12,
        ge=2,
        le=MOST_SEGMENTS,
        description="Regions asked for; the result may hold a few fewer. Ids are int16, hence the limit.",
    )
    compactness: float = Field(
        default=20.0, gt=0, description="Weight of distance against colour: higher is rounder."
    )
    min_size_factor: float = Field(
        default=0.1, ge=0, le=1, description="Regions under this share of the mean size are merged."
    )
    iterations: int = Field(default=10, ge=1, le=100, description="Rounds of clustering.")
    shrink: int = Field(
        default=1,
        ge=1,
        le=8,
        description="Compute on a picture smaller by this factor and enlarge the map by nearest.",
    )
    scale: float = Field(default=224.0, gt=0, description="Felzenszwalb: higher makes larger regions.")
    sigma: float = Field(default=0.9, ge=0, description="Felzenszwalb: blur before the cuts, in pixels.")
    min_size: int = Field(default=224, ge=1, description="Felzenszwalb: smaller regions are merged.")

    def parameters(self) -> dict[str, Any]:
        """The fields that count for the method chosen."""
        names = {"slic": _OF_SLIC, "felzenszwalb": _OF_FELZENSZWALB}[self.method]
        return {name: getattr(self, name) for name in ("method", *names, "shrink")}


_OF_SLIC = ("segments", "compactness", "min_size_factor", "iterations")
_OF_FELZENSZWALB = ("scale", "sigma", "min_size")
# What may follow the name on a command line, in this order.
_IN_TEXT = {"slic": ("segments", "compactness"), "felzenszwalb": _OF_FELZENSZWALB}


def method_from_text(text: str) -> SuperpixelMethod | None:
    """A method as command lines take it: ``slic:64``, ``slic:64,20``, ``felzenszwalb:224,0.9,224``; None for ``none``.

    Raises:
        ValueError: another name, or values that the method does not take.
    """
    if text == "none":
        return None
    name, colon, values = text.partition(":")
    given = values.split(",") if colon else []
    allowed = "slic:SEGMENTS[,COMPACTNESS], felzenszwalb:SCALE,SIGMA,MIN_SIZE or none"
    if name not in _IN_TEXT or len(given) > len(_IN_TEXT[name]):
        raise ValueError(f"superpixels {text!r} are not known: use {allowed}, such as slic:64")
    fields = dict(zip(_IN_TEXT[name], given, strict=False))
    try:
        return SuperpixelMethod.model_validate({"method": name, **fields})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(
            f"superpixels {text!r}: {where} {first['input']!r} is not allowed ({first['msg']}): use {allowed}"
        ) from error


def compute_superpixels(picture_HW3: NDArray[np.uint8], method: SuperpixelMethod) -> NDArray[np.int16]:
    """Region ids of a picture.

    Args:
        picture_HW3: uint8 RGB [H, W, 3].
        method: algorithm and parameters.

    Returns:
        int16 [H, W], ids from 0.

    Raises:
        ValueError: the picture is too small for the method, or it falls into more regions than int16 numbers.
    """
    solve = _felzenszwalb if method.method == "felzenszwalb" else _slic_of
    height, width = picture_HW3.shape[:2]
    if method.shrink > 1:
        # A box mean also takes out grain that would fray the borders of regions.
        rows, columns = height // method.shrink, width // method.shrink
        if min(rows, columns) < 4:
            raise ValueError(
                f"a picture of {width} x {height} cannot be shrunk by {method.shrink} for superpixels"
            )
        cut = picture_HW3[: rows * method.shrink, : columns * method.shrink]
        blocks = cut.reshape(rows, method.shrink, columns, method.shrink, 3)
        small = np.ascontiguousarray(blocks.mean(axis=(1, 3), dtype=np.float32).astype(np.uint8))
        labels = solve(small, method)
        row_of = np.minimum(np.arange(height) // method.shrink, rows - 1)
        column_of = np.minimum(np.arange(width) // method.shrink, columns - 1)
        return labels[row_of[:, None], column_of]
    return solve(np.ascontiguousarray(picture_HW3), method)


def _slic_of(picture_HW3: NDArray[np.uint8], method: SuperpixelMethod) -> NDArray[np.int16]:
    height, width = picture_HW3.shape[:2]
    if min(height, width) < LEAST_SIDE or height * width < method.segments:
        raise ValueError(
            f"a picture of {width} x {height} pixels is too small for {method.segments} superpixels: it needs "
            f"sides of at least {LEAST_SIDE} and a pixel for each"
        )
    return _slic()(picture_HW3, method)


def _felzenszwalb(picture_HW3: NDArray[np.uint8], method: SuperpixelMethod) -> NDArray[np.int16]:
    from skimage.segmentation import felzenszwalb

    labels = felzenszwalb(picture_HW3, scale=method.scale, sigma=method.sigma, min_size=method.min_size)
    regions = int(labels.max()) + 1
    if regions > MOST_SEGMENTS:
        raise ValueError(
            f"Felzenszwalb cuts the picture into {regions} regions, more than {MOST_SEGMENTS}: raise min_size "
            f"({method.min_size}) or scale ({method.scale:g}), or make the pictures smaller"
        )
    return np.asarray(labels, dtype=np.int16)


@lru_cache(maxsize=1)
def _slic() -> Callable[[NDArray[np.uint8], SuperpixelMethod], NDArray[np.int16]]:
    """The fastest SLIC of this machine; scikit-image's, with one warning, where fast-slic is not
    installed."""
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
            num_components=method.segments,
            compactness=method.compactness,
            min_size_factor=method.min_size_factor,
            # Pictures are shared out over processes; OpenMP threads of each would spin against the others.
            num_threads=1,
        )
        return np.asarray(slic.iterate(picture_HW3, max_iter=method.iterations), dtype=np.int16)

    return run


def _has_avx2() -> bool:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            return any(line.startswith("flags") and " avx2" in line for line in file)
    except OSError:  # not Linux: the portable class works everywhere
        return False


def _scikit_slic(picture_HW3: NDArray[np.uint8], method: SuperpixelMethod) -> NDArray[np.int16]:
    from skimage.segmentation import slic

    labels = slic(
        picture_HW3,
        n_segments=method.segments,
        compactness=method.compactness,
        max_num_iter=method.iterations,
        min_size_factor=method.min_size_factor,
        start_label=0,
    )
    return np.asarray(labels, dtype=np.int16)


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
