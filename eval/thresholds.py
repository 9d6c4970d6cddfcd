"""What other background thresholds would score, from one pass over the images.

A pixel is background where the background's score is above the best class's. The classes' scores do not depend on the
threshold, and the background's can only rise with it: a center becomes background once the threshold passes its best
score, unless it is the best of its window. So a pixel that is background at one threshold is background at all higher
ones, and the number of thresholds at which it is not says all. Pixels are counted by truth, best class and that number;
the confusion matrix of every threshold is a sum over those counts.

Shape letters: B windows, G centers, K thresholds, C labels with the background as 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segclip.eval.cells import resize_scores
from segclip.eval.datasets import IGNORE, SegmentationDataset
from segclip.eval.metrics import mean_iou
from segclip.eval.protocol import Protocol
from segclip.eval.result import Result, ThresholdPoint, ThresholdStudy

__all__ = ["ThresholdTally", "background_scores", "curve", "study", "threshold_grid", "threshold_picture"]

_STEPS = 100
_BYTES = 256 * 2**20  # upsampled scores in memory


def threshold_grid(dataset: SegmentationDataset, protocol: Protocol) -> tuple[float, ...]:
    """The thresholds that are tried: 0.01 to 0.99 and the protocol's own, rising.

    Raises:
        ValueError: the protocol decides the background of this data set otherwise.
    """
    rule = protocol.rule(dataset.name)
    if rule.threshold is None or rule.background != "threshold":
        raise ValueError(
            f"protocol {protocol.name!r} has no background by threshold alone for data set {dataset.name!r} "
            f"(its background rule is {rule.background!r}), so there is nothing to study"
        )
    return tuple(sorted({number / _STEPS for number in range(1, _STEPS)} | {rule.threshold}))


def background_scores(class_scores_BGC: Tensor, thresholds: Sequence[float]) -> Tensor:
    """float32 [B, G, K]: 1 where a center is background at a threshold, as ``ClassScorer`` has it.

    Args:
        class_scores_BGC: scores of the classes, without the background.
        thresholds: K of them.
    """
    best_BG1 = class_scores_BGC.amax(dim=-1, keepdim=True)
    bounds_K = class_scores_BGC.new_tensor(thresholds)
    # In each window one center at least stays foreground.
    bounds_B1K = torch.minimum(best_BG1.amax(dim=1, keepdim=True), bounds_K)
    return (best_BG1 < bounds_B1K).to(class_scores_BGC.dtype)


class ThresholdTally:
    """Counts the pixels of images by truth, best class and number of thresholds that leave them foreground."""

    def __init__(self, classes: int, thresholds: int, device: torch.device) -> None:
        self._classes, self._thresholds = classes, thresholds
        self._counts = torch.zeros(classes * classes * (thresholds + 1), dtype=torch.int64, device=device)

    def add(
        self, truth_HW: Tensor, background_Khw: Tensor, classes_Chw: Tensor, size: tuple[int, int]
    ) -> None:
        """Count one image.

        Args:
            truth_HW: labels 0..C-1, ``IGNORE`` where none is asked.
            background_Khw: the background's scores at each threshold, averaged over the windows.
            classes_Chw: the scores of the C - 1 classes.
            size: (H, W) of ``truth_HW``.
        """
        best_HW, label_HW = _best(classes_Chw, size)
        left_HW = _foreground(background_Khw, best_HW, size)
        index = (truth_HW * self._classes + label_HW + 1) * (self._thresholds + 1) + left_HW
        counted = truth_HW != IGNORE
        index = torch.where(counted, index, 0).flatten()
        self._counts.scatter_add_(0, index, counted.flatten().long())

    def counts(self) -> NDArray[np.int64]:
        """int64 [C, C, K + 1]: pixels by truth, best class (0 never) and number of thresholds."""
        shape = (self._classes, self._classes, self._thresholds + 1)
        return np.asarray(self._counts.cpu().numpy().reshape(shape))


def _best(scores_Chw: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Best score and its class for each pixel at ``size``; a few classes upsampled at a time."""
    best_HW = scores_Chw.new_zeros(size)
    label_HW = torch.zeros(size, dtype=torch.long, device=scores_Chw.device)
    at_once = _at_once(size)
    for start in range(0, len(scores_Chw), at_once):
        values_HW, index_HW = resize_scores(scores_Chw[start : start + at_once], size).max(dim=0)
        better_HW = values_HW > best_HW
        label_HW = torch.where(better_HW, index_HW + start, label_HW)
        best_HW = torch.where(better_HW, values_HW, best_HW)
    return best_HW, label_HW


def _foreground(background_Khw: Tensor, best_HW: Tensor, size: tuple[int, int]) -> Tensor:
    """int64 [H, W]: at how many thresholds a pixel is not background."""
    # Centers are few, so most thresholds give the map of the one before.
    changed = (background_Khw[1:] != background_Khw[:-1]).flatten(1).any(dim=1)
    starts = [0, *((changed.nonzero()[:, 0] + 1).tolist())]
    lengths = torch.tensor(
        [end - start for start, end in zip(starts, [*starts[1:], len(background_Khw)], strict=True)],
        device=best_HW.device,
    )
    left_HW = torch.zeros(size, dtype=torch.long, device=best_HW.device)
    at_once = _at_once(size)
    for first in range(0, len(starts), at_once):
        part_KHW = resize_scores(background_Khw[starts[first : first + at_once]], size)
        left_HW += ((part_KHW < best_HW) * lengths[first : first + at_once, None, None]).sum(0)
    return left_HW


def _at_once(size: tuple[int, int]) -> int:
    return max(_BYTES // (8 * size[0] * size[1]), 1)


def curve(counts_CCK: NDArray[np.int64], thresholds: Sequence[float]) -> tuple[ThresholdPoint, ...]:
    """Mean IoU at every threshold.

    Args:
        counts_CCK: int64 [C, C, K + 1] of all images, by ``ThresholdTally``.
        thresholds: K, rising.
    """
    return tuple(
        ThresholdPoint(threshold, mean_iou(torch.from_numpy(confusion_at(counts_CCK, number))))
        for number, threshold in enumerate(thresholds)
    )


def confusion_at(counts_CCK: NDArray[np.int64], number: int) -> NDArray[np.int64]:
    """Confusion matrix int64 [C, C] at one of the thresholds."""
    confusion = counts_CCK[:, :, number + 1 :].sum(2)
    confusion[:, 0] += counts_CCK[:, :, : number + 1].sum((1, 2))
    return confusion


def study(
    fixed: float,
    on_result: Sequence[ThresholdPoint],
    on_tune: Sequence[ThresholdPoint] = (),
    *,
    tune_split: str | None = None,
    tune_images: int = 0,
) -> ThresholdStudy:
    """Fixed, tuned and oracle thresholds of two curves over the same thresholds; the lowest of equally good ones."""
    by_threshold = {point.threshold: point for point in on_result}
    tuned = by_threshold[_highest(on_tune).threshold] if on_tune else None
    return ThresholdStudy(
        fixed=by_threshold[fixed],
        tuned=tuned,
        tune_split=tune_split,
        tune_images=tune_images,
        oracle=_highest(on_result),
        curve=tuple(on_result),
        tune_curve=tuple(on_tune),
    )


def _highest(points: Sequence[ThresholdPoint]) -> ThresholdPoint:
    return max(points, key=lambda point: point.miou)


def threshold_picture(result: Result, path: Path) -> Path:
    """Mean IoU over the background threshold, the three thresholds marked."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = result.thresholds
    assert found is not None
    figure = Figure(figsize=(7.5, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    curves = [(found.curve, f"{result.split}, {result.images} images", "#1f4e79", "-")]
    if found.tune_curve:
        label = f"{found.tune_split}, {found.tune_images} images (tuned on)"
        curves.append((found.tune_curve, label, "#888888", "--"))
    for points, label, colour, line in curves:
        axes.plot(
            [point.threshold for point in points],
            [100 * point.miou for point in points],
            line,
            color=colour,
            label=label,
        )
    marks = [(found.fixed, "protocol", "o"), (found.tuned, f"tuned on {found.tune_split}", "s")]
    for point, label, mark in [*marks, (found.oracle, "oracle (a bound, no score)", "^")]:
        if point is not None:
            axes.plot(
                point.threshold,
                100 * point.miou,
                mark,
                markersize=8,
                linestyle="none",
                label=f"{label}: {100 * point.miou:.1f} % at {point.threshold:g}",
            )
    axes.set_xlabel("background threshold")
    axes.set_ylabel("mean IoU %")
    axes.set_title(f"{result.dataset} under {result.protocol['name']}", loc="left", fontsize=11)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(path)
    return path
