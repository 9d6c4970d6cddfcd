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
from torchmetrics.classification import MulticlassJaccardIndex

from segclip.eval.counts import ImageCounts, Tally, pair_counts
from segclip.eval.metrics import class_iou, mean_iou

CLASSES = 5


@settings(max_examples=40, deadline=None)
@given(
    arrays(np.int64, (6, 7), elements=st.sampled_from([*range(CLASSES), 255])),
    arrays(np.int64, (6, 7), elements=st.integers(0, CLASSES - 1)),
)
def test_agrees_with_an_independent_implementation(truth, prediction) -> None:
    found = pair_counts(torch.from_numpy(truth), torch.from_numpy(prediction), CLASSES)
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


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.floats(0, 0.9))
def test_agrees_with_torchmetrics_over_many_images(seed, images, ignored) -> None:
    """The whole way: image by image as an evaluation counts them, and as torchmetrics does."""
    random = np.random.default_rng(seed)
    theirs = MulticlassJaccardIndex(num_classes=CLASSES, average="macro", ignore_index=255)
    each = MulticlassJaccardIndex(num_classes=CLASSES, average="none", ignore_index=255)
    tally = Tally(CLASSES, torch.device("cpu"))
    for number in range(images):
        size = tuple(random.integers(1, 12, 2))
        truth = torch.from_numpy(random.integers(0, CLASSES, size))
        found = torch.from_numpy(random.integers(0, CLASSES - 1, size))
        truth[torch.from_numpy(random.random(size) < ignored)] = 255
        tally.add(str(number), truth, found)
        theirs.update(found[None], truth[None])
        each.update(found[None], truth[None])
    counted = torch.from_numpy(ImageCounts.join([tally.counts()]).confusion())
    mine = class_iou(counted)
    assert torch.allclose(mine.nan_to_num(0).float(), each.compute())
    if bool(counted.sum() > 0):
        assert mean_iou(counted) == pytest.approx(float(theirs.compute()), abs=1e-6)


def test_mean_is_over_the_data_set_not_over_images() -> None:
    # Class 1: 1 of 1 pixel in the first image, 0 of 9 in the second. Per-image averaging would say 0.5.
    first = pair_counts(torch.tensor([1]), torch.tensor([1]), 2)
    second = pair_counts(torch.tensor([1] * 9), torch.tensor([0] * 9), 2)
    total = first + second
    assert float(class_iou(total)[1]) == pytest.approx(0.1)


def test_counts_beyond_int32() -> None:
    big = torch.full((2, 2), 3_000_000_000, dtype=torch.int64)
    assert float(class_iou(big + big)[0]) == pytest.approx(1 / 3)
