from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import confusion_matrix as sklearn_confusion
from sklearn.metrics import jaccard_score

from segclip.eval.metrics import class_accuracy, class_iou, confusion_matrix, mean_iou, pixel_accuracy

CLASSES = 5


@settings(max_examples=40, deadline=None)
@given(
    arrays(np.int64, (6, 7), elements=st.sampled_from([*range(CLASSES), 255])),
    arrays(np.int64, (6, 7), elements=st.integers(0, CLASSES - 1)),
)
def test_agrees_with_an_independent_implementation(truth, prediction) -> None:
    found = confusion_matrix(torch.from_numpy(truth), torch.from_numpy(prediction), CLASSES)
    kept = truth != 255
    assert found.dtype == torch.int64
    if not kept.any():
        assert int(found.sum()) == 0
        return
    labels = list(range(CLASSES))
    assert (found.numpy() == sklearn_confusion(truth[kept], prediction[kept], labels=labels)).all()
    seen = np.union1d(truth[kept], prediction[kept])
    scores = jaccard_score(truth[kept], prediction[kept], labels=seen, average=None)
    mine = class_iou(found).numpy()
    assert np.allclose(mine[seen], scores)
    assert np.isnan(np.delete(mine, seen)).all()
    assert math.isclose(mean_iou(found), scores.mean())
    assert math.isclose(pixel_accuracy(found), (truth[kept] == prediction[kept]).mean())


def test_mean_is_over_the_data_set_not_over_images() -> None:
    # Class 1: 1 of 1 pixel in the first image, 0 of 9 in the second. Per-image averaging would say 0.5.
    first = confusion_matrix(torch.tensor([1]), torch.tensor([1]), 2)
    second = confusion_matrix(torch.tensor([1] * 9), torch.tensor([0] * 9), 2)
    total = first + second
    assert float(class_iou(total)[1]) == pytest.approx(0.1)
    assert float(class_accuracy(total)[1]) == pytest.approx(0.1)
    assert math.isnan(float(class_accuracy(total)[0]))


def test_counts_beyond_int32() -> None:
    big = torch.full((2, 2), 3_000_000_000, dtype=torch.int64)
    assert float(class_iou(big + big)[0]) == pytest.approx(1 / 3)


def test_values_out_of_range_are_refused() -> None:
    good = torch.zeros(3, dtype=torch.long)
    with pytest.raises(ValueError, match=r"prediction holds 7, outside 0\.\.4"):
        confusion_matrix(good, torch.tensor([0, 7, 1]), CLASSES)
    with pytest.raises(ValueError, match="truth holds -1"):
        confusion_matrix(torch.tensor([0, -1, 255]), good, CLASSES)
    with pytest.raises(ValueError, match=r"truth is \(3,\) but prediction is \(2,\)"):
        confusion_matrix(good, good[:2], CLASSES)
