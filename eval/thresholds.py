"""What other background thresholds would score, from one pass over the images.

The classes' scores do not depend on the threshold, and the background can only win more with it. Where pixels decide, a
pixel is background once the threshold passes its best score. Where centers decide, a center is background once the
threshold passes its best score, unless it is the best of its window, and a pixel is background where that outweighs its
best class. Either way a pixel that is background at one threshold is background at all higher ones, and the number of
thresholds at which it is not says all. Pixels are counted by truth, best class and that number; the confusion matrix
of every threshold is a sum over those counts.

Shape letters: B windows, G centers, K thresholds, C labels with the background as 0, P pixels, V columns of scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segclip.eval.cells import Cells, PixelRule, given_up, spread
from segclip.eval.datasets.dataset import IGNORE, SegmentationDataset
from segclip.eval.metrics import mean_iou
from segclip.eval.protocol import Protocol
from segclip.eval.result import Result, ThresholdPoint, ThresholdStudy

__all__ = ["ThresholdTally", "background_scores", "curve", "study", "threshold_grid", "threshold_picture"]

_STEPS = 100


def threshold_grid(dataset: SegmentationDataset, protocol: Protocol) -> tuple[float, ...]:
    """The thresholds that are tried: 0.01 to 0.99 and the protocol's own, rising.

    Raises:
        ValueError: the protocol decides the background of this data set otherwise, or in a way that one pass over the
            images does not show.
    """
    rule = protocol.rule(dataset.name)
    if rule.threshold is None:
        raise ValueError(
            f"protocol {protocol.name!r} has no background threshold for data set {dataset.name!r} "
            f"(its background rule is {rule.background!r}), so there is nothing to study"
        )
    if rule.smallest_share is not None and protocol.threshold_at == "center":
        raise ValueError(
            f"protocol {protocol.name!r}: with `smallest_share` and `threshold_at: center` the classes that are left "
            "depend on the threshold, which one pass cannot study"
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
    """Counts the pixels of images by truth, best class and number of thresholds that leave them foreground.

    Args:
        rule: of the main figures.
        thresholds: K, rising.
        at_center: the background is decided center by center, and its scores at each threshold are K more columns.
    """

    def __init__(self, rule: PixelRule, thresholds: Sequence[float], *, at_center: bool) -> None:
        device = rule.column_label_V.device
        self._rule, self._at_center = rule, at_center
        self._thresholds_K = torch.tensor(thresholds, device=device)
        self._shape = rule.labels, rule.labels, len(thresholds) + 1
        self._counts = torch.zeros(self._shape, dtype=torch.int64, device=device).flatten()

    def add(self, truth_HW: Tensor, main: Cells, background: Cells, size: tuple[int, int]) -> None:
        """Count one image.

        Args:
            truth_HW: labels 0..C-1, ``IGNORE`` where none is asked.
            main: the columns of the main figures.
            background: K columns of the background's scores; none if pixels decide.
            size: (H, W) of ``truth_HW``.
        """
        given_up_C = given_up(main, self._rule, size)
        columns = main.values_UV.shape[1]
        both = Cells(main.cell_hw, torch.cat([main.values_UV, background.values_UV], dim=1))

        def place(values_PX: Tensor) -> Tensor:
            label_P, left_P = self._best(values_PX[:, :columns], values_PX[:, columns:], given_up_C)
            return label_P * self._shape[2] + left_P

        index_HW = truth_HW * (self._shape[1] * self._shape[2]) + spread(both, size, place)
        counted = truth_HW.flatten() != IGNORE
        self._counts.scatter_add_(0, torch.where(counted, index_HW.flatten(), 0), counted.long())

    def _best(
        self, values_PV: Tensor, background_PK: Tensor, given_up_C: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Best class of each pixel, and at how many thresholds it is not background; as ``PixelRule.best`` has it."""
        labels_V = self._rule.column_label_V
        if self._at_center:  # column 0 is the background at the protocol's own threshold
            values_PV, labels_V = values_PV[:, 1:], labels_V[1:]
        offered_PV = values_PV
        if given_up_C is not None:
            offered_PV = values_PV.masked_fill(given_up_C[labels_V], float("-inf"))
        value_P, column_P = offered_PV.max(dim=-1)
        if self._at_center:
            left_P = (background_PK < value_P[:, None]).sum(-1)
        else:
            if self._rule.logit_scale is not None:
                whole_P = (self._rule.logit_scale * values_PV).logsumexp(dim=-1)
                value_P = (self._rule.logit_scale * value_P - whole_P).exp()
            left_P = (value_P[:, None] >= self._thresholds_K).sum(-1)
        return labels_V[column_P], left_P

    def counts(self) -> NDArray[np.int64]:
        """int64 [C, C, K + 1]: pixels by truth, best class and number of thresholds."""
        return np.asarray(self._counts.cpu().numpy().reshape(self._shape))


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
