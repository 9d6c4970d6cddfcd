"""What an evaluation counts besides its main figures: other background thresholds, other words; all in the same pass.

The encoder is what takes time, and its output does not depend on words or thresholds. So the scores under every variant
are computed for the same centers and are averaged over windows side by side, as more columns of one scorer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segclip.eval.cells import Cells, PixelRule, label_map
from segclip.eval.counts import pair_counts
from segclip.eval.inference import ClassScorer, Prediction
from segclip.eval.thresholds import ThresholdTally, background_scores

__all__ = ["StackedScorer", "StudyTally"]


@dataclass(frozen=True)
class StackedScorer:
    """Columns of scores of several scorers behind one another.

    Attributes:
        main: the one of the main figures.
        thresholds: background thresholds to try with the main one's words; none for no such study.
        others: scorers of other words.
    """

    main: ClassScorer
    thresholds: tuple[float, ...] = ()
    others: tuple[ClassScorer, ...] = ()

    @property
    def pixel_rule(self) -> PixelRule:
        """Of the main one's columns."""
        return self.main.pixel_rule

    @property
    def at_center(self) -> bool:
        """The background of the main one is decided center by center, not pixel by pixel."""
        return self.main.threshold is not None and self.main.pixel_rule.threshold is None

    def __call__(self, center_embed_BGE: Tensor, image_embed_BE: Tensor) -> Tensor:
        """float32 [B, G, columns]: the main scorer's, one a threshold if centers decide, the other scorers'."""
        columns = [self.main(center_embed_BGE, image_embed_BE)]
        if self.thresholds and self.at_center:
            columns.append(background_scores(columns[0][..., 1:], self.thresholds))
        columns += [other(center_embed_BGE, image_embed_BE) for other in self.others]
        return torch.cat(columns, dim=-1)

    def split(self, cells: Cells) -> tuple[Cells, Cells, tuple[Cells, ...]]:
        """The main scorer's columns, those of the thresholds, those of each other scorer."""
        sizes = [
            len(self.main.pixel_rule.column_label_V),
            len(self.thresholds) if self.at_center else 0,
            *(len(other.pixel_rule.column_label_V) for other in self.others),
        ]
        main, background, *others = (
            Cells(cells.cell_hw, values_UV) for values_UV in cells.values_UV.split(sizes, dim=1)
        )
        return main, background, tuple(others)


class StudyTally:
    """Counts images for the studies of a stacked scorer."""

    def __init__(self, scorer: StackedScorer) -> None:
        self._scorer = scorer
        rule = scorer.main.pixel_rule
        self._thresholds = (
            ThresholdTally(rule, scorer.thresholds, at_center=scorer.at_center) if scorer.thresholds else None
        )
        self._variants = [
            torch.zeros(other.labels, other.labels, dtype=torch.int64, device=other.text_NE.device)
            for other in scorer.others
        ]

    def add(self, truth_HW: Tensor, prediction: Prediction) -> Tensor:
        """Count one image; returns the main scorer's labels int64 [H, W].

        Args:
            truth_HW: labels, ``IGNORE`` where none is asked.
            prediction: by the stacked scorer.
        """
        main, background, others = self._scorer.split(prediction.cells)
        if self._thresholds is not None:
            self._thresholds.add(truth_HW, main, background, prediction.size)
        for counts_CC, scorer, cells in zip(self._variants, self._scorer.others, others, strict=True):
            found_HW = label_map(cells, scorer.pixel_rule, prediction.size)
            counts_CC += pair_counts(truth_HW, found_HW, len(counts_CC))
        return label_map(main, self._scorer.main.pixel_rule, prediction.size)

    def thresholds(self) -> NDArray[np.int64] | None:
        """Counts of the threshold study, see ``ThresholdTally.counts``; None without one."""
        return None if self._thresholds is None else self._thresholds.counts()

    def variants(self) -> tuple[NDArray[np.int64], ...]:
        """A confusion matrix for each of the other scorers."""
        return tuple(np.asarray(counts_CC.cpu().numpy()) for counts_CC in self._variants)
