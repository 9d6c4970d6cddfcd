"""How far a score may be chance: confidence intervals by drawing the images again.

The images of a data set are a sample of those one might have scored on. The bootstrap draws as many images from them
with replacement, again and again, and makes the figure of each draw: mean IoU of *all* pixels of the drawn images, as
ever, from the sums of their counts (so each draw is exact, not an average of images). The interval holds the middle
95 % of the draws (percentile bootstrap). It tells of the choice of images alone, not of another training run.

A class that is in no image of a draw is left out of that draw's mean, as a class without pixels is in a score.

Draws are keyed by (seed, draw, place of the image among the sorted keys): two results on the same images see the same
draws, which makes their comparison paired; order and sharing of the images change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from segclip.eval.counts import ImageCounts
from segclip.eval.result import Interval, Intervals
from segclip.keyed_random import Purpose, uniform_numpy

__all__ = ["Figures", "Resampling", "bootstrap", "figures", "interval", "per_image_sums", "weights"]

Array = NDArray[np.float64]
_AT_ONCE = 2**22  # drawn numbers in memory
_FEWEST, _MOST = 100, 1_000_000


@dataclass(frozen=True)
class Figures:
    """Figures of one or more draws D; NaN where there is nothing to divide by.

    Attributes:
        iou_DC, boundary_iou_DC, accuracy_DC: of the classes.
        pixel_accuracy_D, coverage_D: part of all pixels that are right; part of those of named classes that got one.
    """

    iou_DC: Array
    boundary_iou_DC: Array
    accuracy_DC: Array
    pixel_accuracy_D: Array
    coverage_D: Array

    @property
    def miou_D(self) -> Array:
        return _mean(self.iou_DC)

    @property
    def boundary_miou_D(self) -> Array:
        return _mean(self.boundary_iou_DC)

    @property
    def mean_accuracy_D(self) -> Array:
        return _mean(self.accuracy_DC)


@dataclass(frozen=True)
class Resampling:
    """How confidence intervals are made.

    Attributes:
        draws: resamplings of the images, 0 for no intervals.
        level: part of the draws that an interval holds.
        seed: of the draws.

    Raises:
        ValueError: settings that make no interval.
    """

    draws: int = 1000
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.draws != 0 and not _FEWEST <= self.draws <= _MOST:
            raise ValueError(
                f"the number of bootstrap draws must be 0 (no intervals) or {_FEWEST} to {_MOST:,}, got {self.draws}"
            )
        if not 0.5 <= self.level < 1:
            raise ValueError(
                f"the confidence level must be at least 0.5 and below 1 (0.95 for 95 %), got {self.level}"
            )

    def draw(self, counts: ImageCounts, has_background: bool) -> Figures | None:
        """Figures of the draws; None if there are to be none."""
        return bootstrap(counts, has_background, self.draws, self.seed) if self.draws else None

    def intervals(self, drawn: Figures) -> Intervals:
        """Of the figures of the whole data set."""
        miou, accuracy = interval(drawn.miou_D, self.level), interval(drawn.pixel_accuracy_D, self.level)
        assert miou is not None
        assert accuracy is not None
        return Intervals(
            level=self.level,
            draws=self.draws,
            seed=self.seed,
            miou=miou,
            accuracy=accuracy,
            mean_class_accuracy=interval(drawn.mean_accuracy_D, self.level),
            boundary_iou=interval(drawn.boundary_miou_D, self.level),
            coverage=interval(drawn.coverage_D, self.level),
        )


def figures(sums_DK: NDArray[np.int64], classes: int) -> Figures:
    """Figures of sums int64 [D, 6 C + 2] as ``per_image_sums`` lays them out: of draws, of images, or of a data set."""
    parts = sums_DK[:, : 6 * classes].reshape(len(sums_DK), 6, classes).astype(np.float64)
    hit, true, found, band_hit, band_true, band_found = parts.transpose(1, 0, 2)
    named, covered = sums_DK[:, -2:].T.astype(np.float64)
    return Figures(
        iou_DC=_share(hit, true + found - hit),
        boundary_iou_DC=_share(band_hit, band_true + band_found - band_hit),
        accuracy_DC=_share(hit, true),
        pixel_accuracy_D=_share(hit.sum(1), true.sum(1)),
        coverage_D=_share(covered, named),
    )


def bootstrap(counts: ImageCounts, has_background: bool, draws: int, seed: int) -> Figures:
    """Figures of ``draws`` draws.

    Args:
        counts: of the images, sorted by key.
        has_background: of the data set, for ``coverage``.
        draws: how often the images are drawn again.
        seed: another one, other draws.
    """
    reduced = per_image_sums(counts, has_background)
    images = len(counts.keys)
    at_once = max(_AT_ONCE // images, 1)
    sums = [
        (reduced.T @ weights(images, start, min(start + at_once, draws), seed).T).T
        for start in range(0, draws, at_once)
    ]
    return figures(np.concatenate(sums), counts.classes)


def weights(images: int, first: int, last: int, seed: int) -> NDArray[np.int64]:
    """How often each image is drawn in the draws ``first`` to ``last`` - 1: int64 [draws, images]."""
    uniform = uniform_numpy(seed, Purpose.BOOTSTRAP, np.arange(first, last), images)
    chosen = (uniform.astype(np.float64) * images).astype(np.int64)
    rows = np.arange(last - first)[:, None] * images
    counted = np.bincount((chosen + rows).reshape(-1), minlength=(last - first) * images)
    return counted.reshape(last - first, images)


def per_image_sums(counts: ImageCounts, has_background: bool) -> csr_matrix:
    """Sparse int64 [images, 6 C + 2]: pixels hit, true and predicted of each class, the same of the boundary bands,
    then pixels of named classes and how many of them were given a named class.
    """
    size = counts.classes
    pairs = size * size
    truth, found = np.divmod(np.arange(pairs), size)
    column = np.arange(pairs)
    first = int(has_background)
    named, covered = truth >= first, (truth >= first) & (found >= first)
    bands = np.arange(3 * size)
    pieces = [
        (column[truth == found], truth[truth == found]),
        (column, size + truth),
        (column, 2 * size + found),
        (pairs + bands, 3 * size + bands),
        (column[named], np.full(int(named.sum()), 6 * size)),
        (column[covered], np.full(int(covered.sum()), 6 * size + 1)),
    ]
    rows, columns = (np.concatenate([piece[number] for piece in pieces]) for number in (0, 1))
    join = csr_matrix(
        (np.ones(len(rows), dtype=np.int64), (rows, columns)), shape=(pairs + 3 * size, 6 * size + 2)
    )
    return csr_matrix(counts.rows @ join)


def interval(values_D: Array, level: float) -> Interval | None:
    """The middle ``level`` of the draws; None if the figure is NaN in all of them."""
    values_D = values_D[~np.isnan(values_D)]
    if not len(values_D):
        return None
    low, high = np.quantile(values_D, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def _share(part: Array, whole: Array) -> Array:
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)


def _mean(values_DC: Array) -> Array:
    """Mean over the classes that are not NaN; NaN if all are."""
    known = ~np.isnan(values_DC)
    return _share(np.where(known, values_DC, 0).sum(1), known.sum(1).astype(np.float64))
