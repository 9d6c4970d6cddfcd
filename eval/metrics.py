"""IoU made of a confusion matrix; ``segclip.eval.bootstrap`` makes all figures of many draws at once.

A confusion matrix is int64 [C, C]: rows are the truth, columns the prediction. Intersection and union are
summed over all images before they are divided, as the segmentation literature does; averaging per image is
another metric.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["class_iou", "mean_iou"]


def class_iou(confusion_CC: Tensor) -> Tensor:
    """float64 [C]: intersection over union, NaN for a class that is neither in the truth nor predicted."""
    counts = confusion_CC.double()
    hit = counts.diagonal()
    return hit / (counts.sum(0) + counts.sum(1) - hit)


def mean_iou(confusion_CC: Tensor) -> float:
    """Mean of the classes' IoU, classes without any pixel left out."""
    return float(class_iou(confusion_CC).nanmean())
