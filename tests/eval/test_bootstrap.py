from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from segclip.eval.bootstrap import Resampling, bootstrap, figures, interval, per_image_sums, weights
from segclip.eval.counts import ImageCounts, columns
from segclip.eval.metrics import class_iou, mean_iou

CLASSES = 3
PAIRS = CLASSES * CLASSES


def some_counts(images: int, seed: int = 0) -> ImageCounts:
    """Only the first two images know the last class, so that some draws lack it altogether."""
    random = np.random.default_rng(seed)
    rows = random.integers(0, 50, (images, columns(CLASSES)))
    rows[random.random(rows.shape) < 0.6] = 0
    rows[2:, [2, 5, 6, 7, 8, 11, 14, 17]] = 0
    rows[:, 0] += 1
    # Bands: no more in both than in either.
    rows[:, PAIRS : PAIRS + CLASSES] = np.minimum(
        rows[:, PAIRS + CLASSES : PAIRS + 2 * CLASSES], rows[:, PAIRS + 2 * CLASSES :]
    )
    keys = tuple(f"{number:03d}" for number in range(images))
    return ImageCounts(keys, CLASSES, csr_matrix(rows, dtype=np.int64))


@pytest.mark.parametrize("has_background", [False, True])
def test_each_draw_is_the_figure_of_the_drawn_images(has_background) -> None:
    counts, draws = some_counts(6), 150
    drawn = bootstrap(counts, has_background, draws, seed=3)
    times = weights(6, 0, draws, seed=3)
    dense = counts.rows.toarray()
    for draw in range(draws):
        sums = np.repeat(dense, times[draw], axis=0).sum(
            0
        )  # the images themselves, as often as they were drawn
        confusion = torch.from_numpy(sums[:PAIRS].reshape(CLASSES, CLASSES))
        assert drawn.miou_D[draw] == pytest.approx(mean_iou(confusion))
        assert drawn.iou_DC[draw] == pytest.approx(class_iou(confusion).numpy(), nan_ok=True)
        pixels = confusion.numpy()
        first = int(has_background)
        with np.errstate(invalid="ignore"):
            expected = pixels.diagonal() / pixels.sum(1)
            covered = pixels[first:, first:].sum() / pixels[first:].sum()
        assert drawn.accuracy_DC[draw] == pytest.approx(expected, nan_ok=True)
        assert drawn.pixel_accuracy_D[draw] == pytest.approx(np.trace(pixels) / pixels.sum())
        assert drawn.coverage_D[draw] == pytest.approx(covered, nan_ok=True)
        hit, true, found = sums[PAIRS:].reshape(3, CLASSES)
        with np.errstate(invalid="ignore"):
            expected = hit / (true + found - hit)
        assert drawn.boundary_iou_DC[draw] == pytest.approx(expected, nan_ok=True)
    assert np.isnan(drawn.iou_DC).any()  # a class that no drawn image has is left out of the mean


def test_draws_take_each_image_alike_and_are_keyed() -> None:
    times = weights(7, 0, 2000, seed=0)
    assert (times.sum(1) == 7).all()
    assert times.mean(0) == pytest.approx(np.ones(7), abs=0.1)
    assert times.var(0) == pytest.approx(np.full(7, 6 / 7), rel=0.15)
    assert (weights(7, 500, 600, seed=0) == times[500:600]).all()
    assert (weights(7, 0, 2000, seed=1) != times).any()


def test_few_at_a_time_draw_the_same(monkeypatch) -> None:
    whole = bootstrap(some_counts(9), False, 120, 0)
    monkeypatch.setattr("segclip.eval.bootstrap._AT_ONCE", 100)
    assert np.array_equal(bootstrap(some_counts(9), False, 120, 0).miou_D, whole.miou_D)


def test_interval_is_that_of_a_known_spread() -> None:
    """Images of one pixel, right with probability 0.8: the accuracy of 400 of them spreads by 0.02."""
    right = np.random.default_rng(0).random(400) < 0.8
    rows = np.zeros((400, columns(2)), dtype=np.int64)
    rows[right, 0] = 1
    rows[~right, 1] = 1
    counts = ImageCounts(tuple(f"{number:03d}" for number in range(400)), 2, csr_matrix(rows))
    drawn = Resampling(draws=2000).draw(counts, False)
    assert drawn is not None
    found = Resampling(draws=2000).intervals(drawn).accuracy
    spread = 1.96 * np.sqrt(right.mean() * (1 - right.mean()) / 400)
    assert found.low == pytest.approx(right.mean() - spread, abs=0.006)
    assert found.high == pytest.approx(right.mean() + spread, abs=0.006)


def test_figures_without_anything_to_divide_by() -> None:
    counts = ImageCounts(("a", "b"), 2, csr_matrix((2, columns(2)), dtype=np.int64))
    none = figures(per_image_sums(counts, True).toarray(), 2)
    for values in (none.miou_D, none.boundary_miou_D, none.mean_accuracy_D, none.coverage_D):
        assert np.isnan(values).all()
    assert interval(none.miou_D, 0.95) is None


def test_coverage_is_what_is_not_called_background() -> None:
    """Right or wrong among the named classes."""
    rows = np.zeros((1, columns(3)), dtype=np.int64)
    rows[0, :9] = [90, 10, 0, 25, 50, 25, 0, 0, 0]
    counts = ImageCounts(("a",), 3, csr_matrix(rows))
    found = [
        float(figures(per_image_sums(counts, with_it).toarray(), 3).coverage_D[0])
        for with_it in (True, False)
    ]
    assert found == [pytest.approx(0.75), 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"draws": 3}, "must be 0 (no intervals) or 100 to 1,000,000, got 3"),
        ({"draws": -1}, "got -1"),
        ({"level": 95}, "below 1 (0.95 for 95 %), got 95"),
        ({"level": 0.05}, "at least 0.5"),
    ],
)
def test_settings_that_make_no_interval(settings, message) -> None:
    with pytest.raises(ValueError) as refused:
        Resampling(**settings)
    assert message in str(refused.value)
