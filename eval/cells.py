"""Label maps of whole images without scores of every pixel and class.

Where windows overlap, a pixel belongs to one center in each of them, and its scores are the mean of theirs. Few such
combinations occur in an image: they are its *cells*. Scores are averaged once for each cell and are spread over pixels
by index. Enlarging to the original size is bilinear, so most pixels lie between four of the same cell, and there the
cell's best label is the pixel's; only between different cells are scores mixed, some pixels at a time. Memory grows
with the pixels, and with the cells times the classes, not with pixels times classes.

Shape letters: W windows, G centers, V columns of scores, C output labels, U cells, K most windows over one pixel, P
pixels, h w the resized image, H W the original one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from segclip.eval.windows import Window

__all__ = ["Cells", "PixelRule", "find_cells", "given_up", "group_max", "label_map", "spread"]

Numbering = Callable[[Tensor], Tensor]

_MIXED = 2**22  # scores that are mixed at a time: each of a handful of arrays takes 16 MiB
_STRIP = 2**20  # pixels that are labelled at a time


def group_max(values_PN: Tensor, group_N: Tensor) -> Tensor:
    """The largest value of each group, [..., groups]; ``group_N`` holds int64 numbers from 0 without gaps."""
    groups = int(group_N.max()) + 1
    empty = values_PN.new_full((*values_PN.shape[:-1], groups), float("-inf"))
    return empty.scatter_reduce(-1, group_N.expand_as(values_PN), values_PN, reduce="amax", include_self=True)


@dataclass(frozen=True)
class PixelRule:
    """From the columns of scores at a pixel to its label.

    Attributes:
        column_label_V: int64 output label of each column, rising.
        labels: number C of output labels.
        logit_scale: None: columns are scores of labels. Else they are cosines of words, and a word's score is its
            softmax over all words at this scale.
        threshold: None, or the score below which a pixel is label 0.
        smallest_share: None, or the part of an image's foreground up to which a label is given up.
    """

    column_label_V: Tensor
    labels: int
    logit_scale: float | None = None
    threshold: float | None = None
    smallest_share: float | None = None

    def scores(self, values_PV: Tensor) -> Tensor:
        """float32 [P, C]; the background's is at least ``threshold``."""
        if self.logit_scale is not None:
            values_PV = (self.logit_scale * values_PV).softmax(dim=-1)
        first = int(self.column_label_V[0])  # 1 where the threshold alone makes a background
        found = group_max(values_PV, self.column_label_V - first)
        if first:
            found = torch.cat([found.new_zeros(len(found), 1), found], dim=1)
        if self.threshold is not None:
            found[:, 0].clamp_(min=self.threshold)
        return found

    def best(
        self, values_PV: Tensor, given_up_C: Tensor | None = None, *, everywhere: bool = False
    ) -> Tensor:
        """int64 [P]: the label that scores best, the lowest of equals.

        Args:
            values_PV: columns of scores.
            given_up_C: bool, labels that may not win; None for none.
            everywhere: leave the threshold aside.
        """
        offered_PV = values_PV
        if given_up_C is not None:
            offered_PV = values_PV.masked_fill(given_up_C[self.column_label_V], float("-inf"))
        value_P, column_P = offered_PV.max(dim=-1)
        label_P = self.column_label_V[column_P]
        if self.threshold is not None and not everywhere:
            if self.logit_scale is not None:
                whole_P = (self.logit_scale * values_PV).logsumexp(dim=-1)
                value_P = (self.logit_scale * value_P - whole_P).exp()
            label_P = label_P.masked_fill(value_P < self.threshold, 0)
        return label_P.masked_fill(value_P == float("-inf"), 0)


@dataclass(frozen=True)
class Cells:
    """An image divided into cells: ``cell_hw`` int64, and the columns of scores of each, ``values_UV`` float32."""

    cell_hw: Tensor
    values_UV: Tensor


def find_cells(
    windows: Sequence[Window], center_WHW: Sequence[Tensor], values_WGV: Tensor, size: tuple[int, int]
) -> Cells:
    """Cells of the resized image of ``size`` = (h, w), their scores averaged over windows in the order given.

    Args:
        windows: where each lies; together they cover the image.
        center_WHW: integer center of each pixel of each window, cut to the image.
        values_WGV: columns of scores of each center.
    """
    count, centers, columns = values_WGV.shape
    device = values_WGV.device
    covered_hw = torch.zeros(size, dtype=torch.long, device=device)
    for window in windows:
        covered_hw[window.rows, window.columns] += 1
    most = int(covered_hw.max())
    # Row 0 of the scores is none at all: where fewer windows lie over a pixel than the most, that fills the rest.
    place_Khw = torch.zeros(most, *size, dtype=torch.int32, device=device)
    filled_hw = torch.zeros_like(covered_hw)
    for number, (window, center_HW) in enumerate(zip(windows, center_WHW, strict=True)):
        inside = (window.rows, window.columns)
        slot_1HW = filled_hw[inside][None]
        place_HW = center_HW.to(torch.int32) + (1 + number * centers)
        place_Khw[:, window.rows, window.columns] = place_Khw[:, window.rows, window.columns].scatter(
            0, slot_1HW, place_HW[None]
        )
        filled_hw[inside] += 1
    cell_hw = torch.zeros(size, dtype=torch.long, device=device)
    for place_hw in place_Khw:
        keys_hw = cell_hw * (count * centers + 1) + place_hw
        cell_hw = torch.unique(keys_hw, return_inverse=True)[1]
    cells = int(cell_hw.max()) + 1
    example_U = cell_hw.new_zeros(cells)
    example_U[cell_hw.flatten()] = torch.arange(cell_hw.numel(), device=device)
    rows_RV = torch.cat([values_WGV.new_zeros(1, columns), values_WGV.flatten(0, 1)])
    values_UV = values_WGV.new_zeros(cells, columns)
    for place_hw in place_Khw:
        values_UV += rows_RV[place_hw.flatten()[example_U].long()]
    values_UV /= covered_hw.flatten()[example_U][:, None]
    return Cells(cell_hw, values_UV)


def label_map(cells: Cells, rule: PixelRule, size: tuple[int, int]) -> Tensor:
    """Label of each pixel at ``size`` = (H, W), int64 [H, W]: scores are enlarged bilinearly, then the best wins."""
    return _labels(cells, rule, size, given_up(cells, rule, size))


def given_up(cells: Cells, rule: PixelRule, size: tuple[int, int]) -> Tensor | None:
    """bool [C]: labels too small in this image to win, thresholds aside; None if the rule has no such bound."""
    if rule.smallest_share is None:
        return None
    first_HW = _labels(cells, rule, size, None, everywhere=True)
    pixels_C = first_HW.flatten().bincount(minlength=rule.labels)
    pixels_C[0] = 0
    given_up_C = pixels_C <= rule.smallest_share * pixels_C.sum()
    given_up_C[0] = False
    return given_up_C


def _labels(
    cells: Cells,
    rule: PixelRule,
    size: tuple[int, int],
    given_up_C: Tensor | None,
    *,
    everywhere: bool = False,
) -> Tensor:
    def best(by: PixelRule) -> Numbering:
        return lambda values_PV: by.best(values_PV, given_up_C, everywhere=everywhere)

    def fewer(corner_4P: Tensor) -> tuple[Tensor, Numbering]:
        if everywhere or rule.threshold is None or rule.logit_scale is None:
            possible, kept = _only_possible(cells, rule, corner_4P, given_up_C)
            return possible.values_UV, best(kept)
        return cells.values_UV, best(rule)

    return spread(cells, size, best(rule), fewer)


def spread(
    cells: Cells,
    size: tuple[int, int],
    number: Numbering,
    fewer: Callable[[Tensor], tuple[Tensor, Numbering]] | None = None,
) -> Tensor:
    """int64 [H, W]: what ``number`` makes of the columns of scores at each pixel, these being enlarged bilinearly.

    Args:
        cells: of the image.
        size: (H, W).
        number: from columns float32 [P, V] to int64 [P].
        fewer: from the four cells around each place between cells, int64 [4, P], to the columns that matter there and
            what makes the same of them; None: all do.
    """
    cell_hw, values_UV = cells.cell_hw, cells.values_UV
    number_hw = number(values_UV)[cell_hw]
    if tuple(cell_hw.shape) == tuple(size):
        return number_hw
    corners_4hw = _corners(cell_hw)
    mixed_hw = (corners_4hw[1:] != corners_4hw[0]).any(dim=0)
    if fewer is not None:
        values_UV, number = fewer(corners_4hw[:, mixed_hw])
    top_H, down_H = _neighbours(cell_hw.shape[0], size[0], cell_hw.device)
    left_W, across_W = _neighbours(cell_hw.shape[1], size[1], cell_hw.device)
    label_HW = torch.empty(size, dtype=torch.long, device=cell_hw.device)
    at_once, height = max(_MIXED // values_UV.shape[1], 1), max(_STRIP // size[1], 1)
    for start in range(0, size[0], height):
        rows = slice(start, start + height)
        found_HW = number_hw[top_H[rows]][:, left_W]
        row_P, column_P = mixed_hw[top_H[rows]][:, left_W].nonzero(as_tuple=True)
        for rows_P, columns_P in zip(row_P.split(at_once), column_P.split(at_once), strict=True):
            down_P1, across_P1 = down_H[rows][rows_P][:, None], across_W[columns_P][:, None]
            corner_4P = corners_4hw[:, top_H[rows][rows_P], left_W[columns_P]]
            upper_PV = values_UV[corner_4P[0]].lerp_(values_UV[corner_4P[1]], across_P1)
            lower_PV = values_UV[corner_4P[2]].lerp_(values_UV[corner_4P[3]], across_P1)
            found_HW[rows_P, columns_P] = number(upper_PV.lerp_(lower_PV, down_P1))
        label_HW[rows] = found_HW
    return label_HW


def _corners(cell_hw: Tensor) -> Tensor:
    """The cells at a place, right of it, below it and below to the right, [4, h, w]; at the edge, those at the edge."""
    right_hw = torch.cat([cell_hw[:, 1:], cell_hw[:, -1:]], dim=1)
    two_2hw = torch.stack([cell_hw, right_hw])
    return torch.cat([two_2hw, torch.cat([two_2hw[:, 1:], two_2hw[:, -1:]], dim=1)])


def _only_possible(
    cells: Cells, rule: PixelRule, corner_4P: Tensor, given_up_C: Tensor | None
) -> tuple[Cells, PixelRule]:
    """Without the columns that can win at no place between cells.

    Between four cells a column scores at most what it does in the best of them, and some column scores at least what
    it does in the worst of them: so the first must reach the largest of the second.

    Args:
        cells, rule: all columns.
        corner_4P: the four cells around each place.
        given_up_C: labels that may not win, so that others need not reach what they do; None for none.
    """
    values_UV = cells.values_UV
    offered_UV = values_UV
    if given_up_C is not None:
        offered_UV = values_UV.masked_fill(given_up_C[rule.column_label_V], float("-inf"))
    count = len(values_UV)
    keys_2P = [
        torch.unique(one * count + other, return_inverse=True)[1] for one, other in corner_4P.view(2, 2, -1)
    ]
    kinds_P = torch.unique(keys_2P[0] * (corner_4P.shape[1] + 1) + keys_2P[1], return_inverse=True)[1]
    example_Q = corner_4P.new_zeros(int(kinds_P.max()) + 1 if kinds_P.numel() else 0)
    example_Q[kinds_P] = torch.arange(len(kinds_P), device=kinds_P.device)
    kept_V = torch.zeros_like(values_UV[0], dtype=torch.bool)
    kept_V[0] = True  # so that some column is left, and of equals the lowest
    for part_4Q in corner_4P[:, example_Q].split(max(_MIXED // values_UV.shape[1] // 4, 1), dim=1):
        around_4QV = offered_UV[part_4Q]
        reached_Q1 = around_4QV.amin(dim=0).amax(dim=1, keepdim=True)
        most_QV = around_4QV.amax(dim=0)
        possible_QV = most_QV >= reached_Q1 - 1e-6 * reached_Q1.abs()  # a little less, for mixing rounds
        if rule.logit_scale is None:  # of labels without any score only the first can win
            possible_QV &= most_QV > 0
        kept_V |= possible_QV.any(dim=0)
    fewer = replace(rule, column_label_V=rule.column_label_V[kept_V])
    return Cells(cells.cell_hw, values_UV[:, kept_V]), fewer


def _neighbours(source: int, target: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The place before each of ``target`` places among ``source`` ones, int64, and the weight of the one after it.

    As torch's bilinear interpolation has it without aligned corners.
    """
    place = (torch.arange(target, device=device, dtype=torch.float32) + 0.5) * (source / target) - 0.5
    place = place.clamp_(min=0)
    before = place.long().clamp_(max=source - 1)
    return before, (place - before).clamp_(0, 1)
