"""Counts over a whole data set and the figures made of them.

A confusion matrix is int64 [C, C]: rows are the truth, columns the prediction. Intersection and union are
summed over all images before they are divided, as the segmentation literature does; averaging per image is
another metric.
"""

from __future__ import annotations

import torch
from torch import Tensor

from segclip.eval.datasets.dataset import IGNORE

__all__ = ["class_accuracy", "class_iou", "confusion_matrix", "coverage", "mean_iou", "pixel_accuracy"]


def confusion_matrix(truth: Tensor, prediction: Tensor, classes: int, ignore: int = IGNORE) -> Tensor:
    """int64 [C, C] counts of (truth, prediction) pairs, pixels with truth ``ignore`` left out.

    Raises:
        ValueError: shapes differ, or a value lies outside 0..classes-1 (truth may also be ``ignore``).
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"truth is {tuple(truth.shape)} but prediction is {tuple(prediction.shape)}")
    kept = truth != ignore
    truth, prediction = truth[kept].long(), prediction[kept].long()
    for name, values in (("truth", truth), ("prediction", prediction)):
        if values.numel() and (int(values.min()) < 0 or int(values.max()) >= classes):
            wrong = values[(values < 0) | (values >= classes)][0]
            raise ValueError(f"{name} holds {int(wrong)}, outside 0..{classes - 1}")
    return torch.bincount(truth * classes + prediction, minlength=classes * classes).view(classes, classes)


def class_iou(confusion_CC: Tensor) -> Tensor:
    """float64 [C]: intersection over union, NaN for a class that is neither in the truth nor predicted."""
    counts = confusion_CC.double()
    hit = counts.diagonal()
    return hit / (counts.sum(0) + counts.sum(1) - hit)


def mean_iou(confusion_CC: Tensor) -> float:
    """Mean of the classes' IoU, classes without any pixel left out."""
    return float(class_iou(confusion_CC).nanmean())


def class_accuracy(confusion_CC: Tensor) -> Tensor:
    """float64 [C]: part of each class's true pixels that are found, NaN for a class without any."""
    counts = confusion_CC.double()
    return counts.diagonal() / counts.sum(1)


def pixel_accuracy(confusion_CC: Tensor) -> float:
    """Part of all counted pixels that are right."""
    counts = confusion_CC.double()
    return float(counts.diagonal().sum() / counts.sum())


def coverage(confusion_CC: Tensor, has_background: bool) -> float:
    """Part of the pixels that truly belong to a named class and were given some named class, right or wrong.

    What is missing to 1 was called background: a background rule that is too greedy shows here, where IoU does not tell
    it from confusion among the classes. Without a background class it is 1; NaN if no pixel belongs to a named class.
    """
    first = int(has_background)
    named = confusion_CC[first:].double()
    return float(named[:, first:].sum() / named.sum())
