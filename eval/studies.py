"""What an evaluation counts besides its main figures: other background thresholds, other words; all in the same pass.

The encoder is what takes time, and its output does not depend on words or thresholds. So the scores under every variant
are computed for the same centers and go through windows and averaging side by side, as more channels of one scorer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segclip.eval.cells import Cells, PixelRule, label_map
from segclip.eval.counts import pair_counts
from segclip.eval.inference import ClassScorer
from segclip.eval.thresholds import ThresholdTally, background_scores

__all__ = ["StackedScorer", "StudyTally"]


@dataclass(frozen=True)
class StackedScorer:
    """Scores of several scorers behind one another.

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
        """That of the main scorer, for its own columns."""
        return self.main.pixel_rule

    def __call__(self, center_embed_BGE: Tensor, image_embed_BE: Tensor) -> Tensor:
        """float32 [B, G, columns]: the main scorer's, one a threshold, the other scorers'."""
        columns = [self.main(center_embed_BGE, image_embed_BE)]
        if self.thresholds and self.main.threshold_at == "pixel":
            # The background scores the same everywhere.
            columns.append(columns[0].new_tensor(self.thresholds).expand(*columns[0].shape[:2], -1))
        elif self.thresholds:
            classes = replace(self.main, threshold=None)(center_embed_BGE, image_embed_BE)
            columns.append(background_scores(classes, self.thresholds))
        columns += [other(center_embed_BGE, image_embed_BE) for other in self.others]
        return torch.cat(columns, dim=-1)

    def split(self, cells: Cells) -> tuple[Cells, Tensor, tuple[Cells, ...]]:
        """The main scorer's columns, those of the thresholds [U, K], those of each other scorer."""
        scorers = (self.main, *self.others)
        main, *others = (len(scorer.pixel_rule.column_label_V) for scorer in scorers)
        first, background_UK, *rest = cells.values_UV.split([main, len(self.thresholds), *others], dim=1)
        return Cells(cells.cell_hw, first), background_UK, tuple(Cells(cells.cell_hw, each) for each in rest)


class StudyTally:
    """Counts images for the studies of a stacked scorer."""

    def __init__(self, scorer: StackedScorer, device: torch.device) -> None:
        self._scorer = scorer
        self._thresholds = (
            ThresholdTally(scorer.main.labels, len(scorer.thresholds), device) if scorer.thresholds else None
        )
        self._variants = [
            torch.zeros(other.labels, other.labels, dtype=torch.int64, device=device)
            for other in scorer.others
        ]

    def add(self, truth_HW: Tensor, cells: Cells, size: tuple[int, int]) -> Tensor:
        """Count one image; returns the main scorer's labels int64 [H, W].

        Args:
            truth_HW: labels, ``IGNORE`` where none is asked.
            cells: of the image, with all columns.
            size: (H, W) of ``truth_HW``.
        """
        main, background_UK, others = self._scorer.split(cells)
        rule = self._scorer.main.pixel_rule
        if self._thresholds is not None:
            # Without the background's own column, where there is one.
            classes_UC = main.values_UV[:, rule.column_label_V > 0]
            self._thresholds.add(
                truth_HW, background_UK.T[:, cells.cell_hw], classes_UC.T[:, cells.cell_hw], size
            )
        for counts_CC, scorer, found in zip(self._variants, self._scorer.others, others, strict=True):
            counts_CC += pair_counts(truth_HW, label_map(found, scorer.pixel_rule, size), len(counts_CC))
        return label_map(main, rule, size)

    def thresholds(self) -> NDArray[np.int64] | None:
        """Counts of the threshold study, see ``ThresholdTally.counts``; None without one."""
        return None if self._thresholds is None else self._thresholds.counts()

    def variants(self) -> tuple[NDArray[np.int64], ...]:
        """A confusion matrix for each of the other scorers."""
        return tuple(np.asarray(counts_CC.cpu().numpy()) for counts_CC in self._variants)
