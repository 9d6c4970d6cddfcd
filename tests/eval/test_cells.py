from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from segclip.eval import cells
from segclip.eval.cells import Cells, PixelRule, find_cells, group_max, label_map
from segclip.eval.windows import window_grid


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def patchwork(height: int, width: int, centers: int, seed: int) -> torch.Tensor:
    """A map of regions some pixels wide."""
    coarse = torch.randint(0, centers, (1, 1, 3, 3), generator=drawn(seed))
    return F.interpolate(coarse.float(), (height, width))[0, 0].long()


def dense(windows, centers, values_WGV, size) -> torch.Tensor:
    """Mean scores of every pixel and column, one window after the other."""
    total, count = torch.zeros(values_WGV.shape[2], *size), torch.zeros(size)
    for window, center, values in zip(windows, centers, values_WGV, strict=True):
        total[:, window.rows, window.columns] += values.T[:, center]
        count[window.rows, window.columns] += 1
    return total / count


@settings(max_examples=30, deadline=None)
@given(st.integers(5, 30), st.integers(5, 30), st.integers(3, 12), st.integers(1, 12), st.integers(0, 99))
def test_cells_hold_the_mean_of_their_windows(height, width, side, stride, seed) -> None:
    windows = window_grid(height, width, side, min(stride, side))
    centers = [
        patchwork(w.bottom - w.top, w.right - w.left, 4, seed + n).to(torch.uint8)
        for n, w in enumerate(windows)
    ]
    values = torch.rand(len(windows), 4, 6, generator=drawn(seed))
    found = find_cells(windows, centers, values, (height, width))
    expected = dense(windows, [each.long() for each in centers], values, (height, width))
    assert torch.equal(found.values_UV.T[:, found.cell_hw], expected)
    assert found.cell_hw.unique().tolist() == list(range(len(found.values_UV)))
    assert len(found.values_UV) <= height * width


def by_pixel(scores_Vhw, rule: PixelRule, size) -> torch.Tensor:
    """The rule at every pixel of the enlarged scores."""
    scores = F.interpolate(scores_Vhw[None], size=size, mode="bilinear", align_corners=False)[0]
    if rule.logit_scale is not None:
        scores = (rule.logit_scale * scores).softmax(0)
    by_label = torch.zeros(rule.labels, *size)
    for column, label in zip(scores, rule.column_label_V.tolist(), strict=True):
        by_label[label] = torch.maximum(by_label[label], column)
    if rule.smallest_share is not None:
        pixels = by_label.argmax(0).flatten().bincount(minlength=rule.labels)
        pixels[0] = 0
        by_label[1:][pixels[1:] <= rule.smallest_share * pixels.sum()] = 0
    best, label = by_label.max(0)
    if rule.threshold is not None:
        label[best < rule.threshold] = 0
    return label


RULES = {
    "classes": PixelRule(torch.arange(6), 6),
    "background by threshold": PixelRule(torch.arange(1, 7), 7, threshold=0.7),
    "synonyms, background by words and threshold": PixelRule(
        torch.tensor([0, 0, 1, 2, 2, 3]), 4, logit_scale=4.0, threshold=0.35
    ),
    "small classes given up": PixelRule(
        torch.tensor([0, 1, 2, 3, 4, 5]), 6, logit_scale=9.0, threshold=0.3, smallest_share=0.2
    ),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 20), st.integers(1, 9), st.integers(0, 99))
def test_labels_are_those_of_scores_of_every_pixel(rule, height, width, at_once, strip, seed) -> None:
    cell_hw = patchwork(7, 9, 5, seed)
    values = torch.rand(5, 6, generator=drawn(seed))
    kept = cells._MIXED, cells._STRIP
    cells._MIXED, cells._STRIP = 6 * at_once, strip * width
    try:
        found = label_map(Cells(cell_hw, values), rule, (height, width))
    finally:
        cells._MIXED, cells._STRIP = kept
    assert torch.equal(found, label_map(Cells(cell_hw, values), rule, (height, width)))
    assert torch.equal(found, by_pixel(values.T[:, cell_hw], rule, (height, width)))


def test_rules_are_not_idle() -> None:
    cell_hw, values = patchwork(7, 9, 5, 3), torch.rand(5, 6, generator=drawn(3))
    for name, rule in RULES.items():
        found = label_map(Cells(cell_hw, values), rule, (20, 30)).unique()
        assert len(found) > 1, name
        assert (0 in found) or name == "classes"
    whole = RULES["small classes given up"]
    every = PixelRule(whole.column_label_V, 6, whole.logit_scale, whole.threshold)
    shown = [label_map(Cells(cell_hw, values), rule, (20, 30)).unique().numel() for rule in (whole, every)]
    assert shown[0] < shown[1]


def test_columns_without_any_score_are_left_out_and_never_win() -> None:
    values = torch.tensor([[0.0, 0.4, 0.0, 0.2], [0.0, 0.1, 0.0, 0.3]])
    cell_hw = torch.tensor([[0, 0, 1, 1]])
    found = label_map(Cells(cell_hw, values), PixelRule(torch.arange(4), 4), (1, 8))
    assert found.tolist() == [[1, 1, 1, 1, 3, 3, 3, 3]]
    nothing = label_map(Cells(cell_hw, torch.zeros(2, 4)), PixelRule(torch.arange(4), 4), (3, 5))
    assert (nothing == 0).all()


def test_a_label_that_is_given_up_holds_no_word_back() -> None:
    """Label 2 is best in two small cells. Without it a background word is, which nowhere reaches as far."""
    cell_hw = torch.tensor([[0] * 8 + [1, 2]])
    values = torch.tensor([[0.0, 0.0, 0.9, 0.6], [0.0, 0.5, 0.2, 0.9], [0.0, 0.5, 0.2, 0.85]])
    rule = PixelRule(torch.tensor([0, 0, 1, 2]), 3, logit_scale=5.0, smallest_share=0.3)
    found = label_map(Cells(cell_hw, values), rule, (1, 40))
    assert torch.equal(found, by_pixel(values.T[:, cell_hw], rule, (1, 40)))
    assert found[0, 36] == 0  # between the two


def test_of_equal_scores_the_lowest_label_wins() -> None:
    cell_hw = patchwork(4, 4, 3, 0)
    for rule in (PixelRule(torch.arange(6), 6), PixelRule(torch.arange(6), 6, logit_scale=40.0)):
        assert (label_map(Cells(cell_hw, torch.full((3, 6), 0.3)), rule, (9, 9)) == 0).all()


def test_a_background_word_that_is_also_a_class_wins() -> None:
    cosines = torch.tensor([[0.1, 0.3, 0.2, 0.3]])  # the last word is the second again
    rule = PixelRule(torch.tensor([0, 0, 1, 2]), 3, logit_scale=50.0)
    assert (label_map(Cells(torch.zeros(3, 3, dtype=torch.long), cosines), rule, (5, 5)) == 0).all()


def test_group_max() -> None:
    found = group_max(torch.tensor([[1.0, -5.0, 3.0, -2.0]]), torch.tensor([0, 1, 0, 1]))
    assert found.tolist() == [[3.0, -2.0]]


def test_scores_of_labels() -> None:
    values = torch.tensor([[0.2, 0.6, 0.1], [0.1, 0.2, 0.3]])
    found = PixelRule(torch.tensor([1, 1, 2]), 3, threshold=0.25).scores(values)
    assert torch.allclose(found, torch.tensor([[0.25, 0.6, 0.1], [0.25, 0.2, 0.3]]))
    found = PixelRule(torch.tensor([0, 0, 1]), 2, logit_scale=2.0, threshold=0.5).scores(values)
    soft = (2 * values).softmax(1)
    assert torch.allclose(found, torch.stack([soft[:, :2].amax(1).clamp(min=0.5), soft[:, 2]], 1))


@pytest.mark.parametrize("turned", range(4))
def test_a_single_corner_counts(turned) -> None:
    cell_hw = torch.tensor([[0, 0], [0, 1]]).rot90(turned)
    values = torch.tensor([[1.0, 0.0], [0.0, 100.0]])
    rule = PixelRule(torch.arange(2), 2)
    found = label_map(Cells(cell_hw, values), rule, (9, 11))
    assert torch.equal(found, by_pixel(values.T[:, cell_hw], rule, (9, 11)))


LARGE = """
import torch
from pathlib import Path
from benchmarks.own_process import peak_resident_mib
from segclip.eval.cells import Cells, PixelRule, label_map
torch.manual_seed(0)
values = torch.rand(300, 171)
coarse = torch.randint(0, 300, (1, 1, 20, 28)).float()
cell_hw = torch.nn.functional.interpolate(coarse, (448, 597))[0, 0].long()
Path("/proc/self/clear_refs").write_text("5")
before = peak_resident_mib()
found = label_map(Cells(cell_hw, values), PixelRule(torch.arange(171), 171, {rule}), (1500, 2000))
print(peak_resident_mib() - before)
assert len(found.unique()) > 50
"""


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["", "logit_scale=40.0, threshold=0.02"])
def test_memory_does_not_grow_with_pixels_times_classes(rule) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LARGE.format(rule=rule)], capture_output=True, text=True, check=True
    )
    labels, scores = 8 * 1500 * 2000 / 2**20, 4 * 171 * 1500 * 2000 / 2**20
    assert float(done.stdout) < labels + 250 < scores / 7
