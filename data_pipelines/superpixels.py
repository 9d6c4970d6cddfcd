"""Superpixels: the map of region ids of a picture, by SLIC or by Felzenszwalb's graph cuts.

Shapes: H, W picture size in pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

__all__ = ["SuperpixelMethod", "compute_superpixels", "method_from_text"]

MOST_SEGMENTS = 32767  # so that ids fit into int16
# fast-slic divides by the distance between seeds in whole pixels: on fewer pixels it kills the process (SIGFPE).
LEAST_SIDE = 4


class SuperpixelMethod(BaseModel):
    """How superpixel maps are computed; kept in the manifest of the shards that hold them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Literal["slic", "felzenszwalb"] = Field(
        default="slic",
        description="SLIC (clusters of like colour and place) as fast-slic implements it, or Felzenszwalb's graph "
        "cuts, the paper's, by scikit-image: 20 times slower.",
    )
    segments: int = Field(
        default=12,
        ge=2,
        le=MOST_SEGMENTS,
        description="SLIC: regions asked for; the result may hold a few fewer. Ids are int16, hence the limit.",
    )
    compactness: float = Field(
        default=20.0, gt=0, description="SLIC: weight of distance against colour; higher is rounder."
    )
    min_size_factor: float = Field(
        default=0.1, ge=0, le=1, description="SLIC: regions under this share of the mean size are merged."
    )
    iterations: int = Field(default=10, ge=1, le=100, description="SLIC: rounds of clustering.")
    shrink: int = Field(
        default=1,
        ge=1,
        le=8,
        description="Compute on a picture smaller by this factor, and enlarge the map: faster, coarser.",
    )
    scale: float = Field(default=224.0, gt=0, description="Felzenszwalb: higher makes larger regions.")
    sigma: float = Field(default=0.9, ge=0, description="Felzenszwalb: blur before the cuts, in pixels.")
    min_size: int = Field(default=224, ge=1, description="Felzenszwalb: regions of fewer pixels are merged.")

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
            "(pip install 'cython>=3' numpy setuptools wheel && pip install --no-build-isolation fast-slic)",
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
