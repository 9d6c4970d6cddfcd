"""Evaluation as the original does it, and the code it comes from: one image, one window, one step after the other.

Each window goes through the encoder twice at batch size 1, once for the map of the centers and once for their
embeddings. Every pixel of a window gets a score of every class, and from these, where there is a threshold, whether
it is background. The scores of a window are added into an array of the whole image and all classes. That is enlarged
to the original size, a softmax is taken at every pixel (mmsegmentation's inference takes one whatever the scores
are), and then the best.

Words, sizes and rules are those of a ``ClassScorer`` and a ``Geometry``, so that the labels can be compared.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from segclip.eval.inference import ClassScorer, patches_to_pixels
from segclip.eval.protocol import Geometry
from segclip.eval.windows import crop, normalised, resize, window_grid

if TYPE_CHECKING:
    from segclip.models.segclip import SegCLIP

__all__ = ["plain_labels", "plain_scores"]


@torch.inference_mode()
def plain_labels(
    model: SegCLIP, image_HW3: NDArray[np.uint8], scorer: ClassScorer, geometry: Geometry
) -> Tensor:
    """int64 label of each pixel, [H, W]."""
    scores_VHW = plain_scores(model, image_HW3, scorer, geometry)
    if scorer.softmax_at == "center":
        label_HW = scores_VHW.softmax(dim=0).argmax(dim=0)
        best_HW = scores_VHW.amax(dim=0)
        if scorer.threshold is not None and scorer.threshold_at == "pixel":
            label_HW += not scorer.background_words
            label_HW[best_HW < scorer.threshold] = 0
        return label_HW
    scores_VHW = (scorer.logit_scale * scores_VHW).softmax(dim=0)
    if scorer.word_label_N is not None:
        scores_VHW = _by_label(scores_VHW, scorer.word_label_N)
    if scorer.smallest_share is not None:
        pixels_C = F.one_hot(scores_VHW.argmax(dim=0), len(scores_VHW)).sum((0, 1))
        scores_VHW[1:][pixels_C[1:] <= scorer.smallest_share * pixels_C[1:].sum()] = 0
    best_HW, label_HW = scores_VHW.max(dim=0)
    if scorer.threshold is not None:
        label_HW += not scorer.background_words
        label_HW[best_HW < scorer.threshold] = 0
    return label_HW


@torch.inference_mode()
def plain_scores(
    model: SegCLIP, image_HW3: NDArray[np.uint8], scorer: ClassScorer, geometry: Geometry
) -> Tensor:
    """float32 scores of all labels (or words) at all pixels of the original image, [V, H, W]."""
    image_3hw = resize(image_HW3, geometry)
    height, width = image_3hw.shape[1:]
    foreground = replace(scorer, threshold=None) if scorer.threshold_at == "center" else scorer
    total_Vhw = count_hw = None
    for window in window_grid(height, width, geometry.window, geometry.stride):
        pixels_13HW = normalised(crop(image_3hw, window, geometry.window)[None], geometry.normalisation)
        seen = model.encode_image(pixels_13HW)
        map_GHW = patches_to_pixels(seen.assignment.soft_BGL, seen.grid, (geometry.window, geometry.window))[
            0
        ]
        one_hot_HWG = F.one_hot(map_GHW.argmax(dim=0), len(map_GHW)).float()
        again = model.encode_image(pixels_13HW)
        values_GV = foreground(again.center_embed_BGE, again.image_embed_BE)[0]
        scores_VHW = (one_hot_HWG @ values_GV).permute(2, 0, 1)
        if scorer.threshold is not None and scorer.threshold_at == "center":
            bound = min(scorer.threshold, float(values_GV.max()))
            background_HW = (one_hot_HWG @ values_GV).amax(dim=-1) < bound
            scores_VHW = torch.cat([background_HW[None].float(), scores_VHW])
        scores_VHW = scores_VHW[:, : window.bottom - window.top, : window.right - window.left]
        around = (window.left, width - window.right, window.top, height - window.bottom)
        if total_Vhw is None or count_hw is None:
            total_Vhw = scores_VHW.new_zeros(len(scores_VHW), height, width)
            count_hw = scores_VHW.new_zeros(height, width)
        total_Vhw += F.pad(scores_VHW, around)
        count_hw[window.rows, window.columns] += 1
    assert total_Vhw is not None
    assert count_hw is not None
    size = image_HW3.shape[:2]
    return F.interpolate((total_Vhw / count_hw)[None], size=size, mode="bilinear", align_corners=False)[0]


def _by_label(scores_NHW: Tensor, label_N: Tensor) -> Tensor:
    """The best word of each label, as the original has it: every label against every word."""
    labels_CN = F.one_hot(label_N).T
    return torch.stack([(scores_NHW * of_label_N[:, None, None]).amax(dim=0) for of_label_N in labels_CN])
