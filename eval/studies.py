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

from segclip.eval.counts import pair_counts
from segclip.eval.inference import ClassScorer, label_map
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

    def __call__(self, center_embed_BGE: Tensor, image_embed_BE: Tensor) -> Tensor:
        """float32 [B, G, channels]: the main scorer's, one a threshold, the other scorers'."""
        channels = [self.main(center_embed_BGE, image_embed_BE)]
        if self.thresholds:
            classes = replace(self.main, threshold=None)(center_embed_BGE, image_embed_BE)
            channels.append(background_scores(classes, self.thresholds))
        channels += [other(center_embed_BGE, image_embed_BE) for other in self.others]
        return torch.cat(channels, dim=-1)

    def split(self, scores_Xhw: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """The main scorer's channels, those of the thresholds, those of each other scorer."""
        sizes = [self.main.labels, len(self.thresholds), *(other.labels for other in self.others)]
        main, background, *others = scores_Xhw.split(sizes)
        return main, background, tuple(others)


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

    def add(self, truth_HW: Tensor, scores_Xhw: Tensor, size: tuple[int, int]) -> Tensor:
        """Count one image; returns the main scorer's labels int64 [H, W].

        Args:
            truth_HW: labels, ``IGNORE`` where none is asked.
            scores_Xhw: all channels, averaged over the windows.
            size: (H, W) of ``truth_HW``.
        """
        main_Chw, background_Khw, others = self._scorer.split(scores_Xhw)
        if self._thresholds is not None:
            self._thresholds.add(truth_HW, background_Khw, main_Chw[1:], size)
        for counts_CC, scores_Chw in zip(self._variants, others, strict=True):
            counts_CC += pair_counts(truth_HW, label_map(scores_Chw, size), len(counts_CC))
        return label_map(main_Chw, size)

    def thresholds(self) -> NDArray[np.int64] | None:
        """Counts of the threshold study, see ``ThresholdTally.counts``; None without one."""
        return None if self._thresholds is None else self._thresholds.counts()

    def variants(self) -> tuple[NDArray[np.int64], ...]:
        """A confusion matrix for each of the other scorers."""
        return tuple(np.asarray(counts_CC.cpu().numpy()) for counts_CC in self._variants)
