"""From images to labels of their pixels: windows, centers, words.

The network gathers patches into G centers. A pixel belongs to the center whose upsampled soft assignment is
largest there, and it takes that center's class scores. So scores are computed for G centers, not for every
pixel, and are spread over the pixels by index (``segclip.eval.cells``).

Shape letters: B windows, H W a window's or image's pixels, h w the resized image, L patches, G centers, N
words, C output labels (the classes, with background in front where there is one), V columns of scores, E embedding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from segclip.eval.cells import Cells, PixelRule, find_cells, group_max, label_map
from segclip.eval.protocol import Geometry, Normalisation, Place
from segclip.eval.windows import Window, crop, normalised, window_grid

if TYPE_CHECKING:
    from segclip.models.segclip import SegCLIP

__all__ = [
    "ClassScorer",
    "Prediction",
    "Scorer",
    "WindowScores",
    "patches_to_pixels",
    "predict",
    "window_scores",
]

# On a CPU the products of a single window take other paths than those of several, and round otherwise.
_FEWEST_WINDOWS = 2


# ---------------------------------------------------------------------------------------------- scores


class Scorer(Protocol):
    """What gives centers their scores."""

    @property
    def pixel_rule(self) -> PixelRule:
        """What is left to do at each pixel."""

    def __call__(self, center_embed_BGE: Tensor, image_embed_BE: Tensor) -> Tensor:
        """Columns of scores, float32 [B, G, V], from un-normalised embeddings."""


@dataclass(frozen=True)
class ClassScorer:
    """Scores of the output labels for each center of a window.

    Attributes:
        text_NE: unit text embedding of each word, float32.
        logit_scale: factor on the cosine.
        rule: ``softmax``, or ``softmax_times_top_k`` (the original's).
        top_k: words kept for a window under ``softmax_times_top_k``.
        word_label_N: output label of each word, int64, rising, for synonyms and background words; None: word i
            is class i.
        threshold: None, or the score below which something is background (label 0).
        background_words: the words of label 0 stand for the background. Otherwise, with a threshold, the first
            class is label 1.
        softmax_at, threshold_at: see ``Protocol``.
        smallest_share: see ``DatasetRule``.
    """

    text_NE: Tensor
    logit_scale: float
    rule: Literal["softmax", "softmax_times_top_k"] = "softmax"
    top_k: int = 5
    word_label_N: Tensor | None = None
    threshold: float | None = None
    background_words: bool = False
    softmax_at: Place = "center"
    threshold_at: Place = "center"
    smallest_share: float | None = None

    @property
    def labels(self) -> int:
        """Number C of output labels."""
        classes = len(self.text_NE) if self.word_label_N is None else int(self.word_label_N.max()) + 1
        return classes + self._first_label

    @property
    def _first_label(self) -> int:
        return int(self.threshold is not None and not self.background_words)

    @cached_property
    def pixel_rule(self) -> PixelRule:
        """What is left to do at each pixel."""
        first, device = self._first_label, self.text_NE.device
        if self.softmax_at == "pixel":
            words_N = (
                torch.arange(len(self.text_NE), device=device)
                if self.word_label_N is None
                else self.word_label_N
            )
            return PixelRule(
                words_N + first, self.labels, self.logit_scale, self.threshold, self.smallest_share
            )
        if self.threshold is None or self.threshold_at == "center":
            return PixelRule(
                torch.arange(self.labels, device=device), self.labels, smallest_share=self.smallest_share
            )
        columns = torch.arange(first, self.labels, device=device)
        return PixelRule(columns, self.labels, None, self.threshold, self.smallest_share)

    def __call__(self, center_embed_BGE: Tensor, image_embed_BE: Tensor) -> Tensor:
        """Columns of scores for ``pixel_rule``, float32 [B, G, V], from un-normalised embeddings.

        ``softmax``: S = softmax_N(scale * cos(center, word)). ``softmax_times_top_k``: S times the same
        softmax over the words that are among the ``top_k`` of the window's own embedding, 0 elsewhere. A
        class scores as its best word. With a threshold at the center, label 0 scores 1 for centers whose best
        class lies below min(threshold, best score of any center of the window), else 0: at least one center of
        each window stays foreground. With the softmax at the pixel: the cosines.
        """
        cosine_BGN = F.normalize(center_embed_BGE.float(), dim=-1) @ self.text_NE.T
        if self.softmax_at == "pixel":
            return cosine_BGN
        logits_BGN = self.logit_scale * cosine_BGN
        scores = logits_BGN.softmax(dim=-1)
        if self.rule == "softmax_times_top_k":
            window_BN = F.normalize(image_embed_BE.float(), dim=-1) @ self.text_NE.T
            kept = window_BN.topk(min(self.top_k, window_BN.shape[-1]), dim=-1).indices
            out_BN = torch.ones_like(window_BN, dtype=torch.bool).scatter_(1, kept, False)
            scores = scores * logits_BGN.masked_fill(out_BN[:, None], float("-inf")).softmax(dim=-1)
        if self.word_label_N is not None:
            scores = group_max(scores, self.word_label_N)
        if self.threshold is None or self.threshold_at == "pixel":
            return scores
        best_BG = scores.amax(dim=-1)
        bound_B1 = best_BG.amax(dim=-1, keepdim=True).clamp(max=self.threshold)
        return torch.cat([(best_BG < bound_B1)[..., None].to(scores.dtype), scores], dim=-1)


def patches_to_pixels(assignment_BGL: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Soft assignment of patches, bilinear in float32 to [B, G, H, W] for ``size`` = (H, W)."""
    map_BGhw = assignment_BGL.float().unflatten(-1, grid)
    return F.interpolate(map_BGhw, size=size, mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class WindowScores:
    """What is known of a batch of windows: a center for each pixel and columns of scores for each center."""

    center_BHW: Tensor
    values_BGV: Tensor


@torch.inference_mode()
def window_scores(
    model: SegCLIP, windows_B3HW: Tensor, scorer: Scorer, normalisation: Normalisation = "model"
) -> WindowScores:
    """Encode windows once and score their centers.

    Args:
        model: in evaluation mode.
        windows_B3HW: uint8, or float already normalised, on the model's device; sides divisible by the patch
            size.
        scorer: words and rules.
        normalisation: of uint8 windows.
    """
    vision = model.encode_image(normalised(windows_B3HW, normalisation))
    height, width = windows_B3HW.shape[-2:]
    pixels_BGHW = patches_to_pixels(vision.assignment.soft_BGL, vision.grid, (height, width))
    # The number of a center is small: a map of many windows waits until its image is whole.
    number = torch.uint8 if model.config.centers <= 256 else torch.int32
    return WindowScores(
        pixels_BGHW.argmax(dim=1).to(number), scorer(vision.center_embed_BGE, vision.image_embed_BE)
    )


# ---------------------------------------------------------------------------------------------- whole images


@dataclass(frozen=True)
class Prediction:
    """One image's result: the windows' centers and scores, from which labels are made when they are asked for.

    Attributes:
        windows: where each window lies in the resized image.
        center_WHW: number of the center of each pixel of each window, cut to the image.
        values_WGV: columns of scores of each center of each window, float32.
        rule: what they mean.
        resized: (h, w) of the resized image.
        size: (H, W) of the original one.
    """

    windows: tuple[Window, ...]
    center_WHW: tuple[Tensor, ...]
    values_WGV: Tensor
    rule: PixelRule
    resized: tuple[int, int]
    size: tuple[int, int]

    @cached_property
    def cells(self) -> Cells:
        """Combinations of centers that occur, with their scores averaged over windows."""
        return find_cells(self.windows, self.center_WHW, self.values_WGV, self.resized)

    def labels(self) -> Tensor:
        """int64 label of each original pixel, [H, W]."""
        return label_map(self.cells, self.rule, self.size)

    @property
    def scores_Chw(self) -> Tensor:
        """float32 scores of every label at the resized size, averaged over the windows; as large as that."""
        return self.rule.scores(self.cells.values_UV).T[:, self.cells.cell_hw]

    @property
    def regions_hw(self) -> Tensor:
        """int64 center of each resized pixel, numbered through all windows (window * G + center); where windows
        overlap, the last one's."""
        regions_hw = torch.zeros(self.resized, dtype=torch.long, device=self.values_WGV.device)
        centers = self.values_WGV.shape[1]
        for number, (window, center_HW) in enumerate(zip(self.windows, self.center_WHW, strict=True)):
            regions_hw[window.rows, window.columns] = center_HW.long() + number * centers
        return regions_hw


class _Open:
    """An image of which windows are still to be encoded."""

    def __init__(self, image_3hw: Tensor, size: tuple[int, int], geometry: Geometry) -> None:
        self.image_3hw = image_3hw
        self.size = size
        self.resized = int(image_3hw.shape[-2]), int(image_3hw.shape[-1])
        self.windows = window_grid(*self.resized, geometry.window, geometry.stride)
        self._centers: list[Tensor] = []
        self._values: list[Tensor] = []

    @property
    def whole(self) -> bool:
        return len(self._centers) == len(self.windows)

    def add(self, window: Window, center_HW: Tensor, values_GV: Tensor) -> None:
        inside = center_HW[: window.bottom - window.top, : window.right - window.left]
        self._centers.append(inside.clone())  # not a view, which would keep the whole batch
        self._values.append(values_GV)

    def finish(self, rule: PixelRule) -> Prediction:
        return Prediction(
            tuple(self.windows),
            tuple(self._centers),
            torch.stack(self._values),
            rule,
            self.resized,
            self.size,
        )


@torch.inference_mode()
def predict(
    model: SegCLIP,
    images: Iterable[tuple[Tensor, tuple[int, int]]],
    scorer: Scorer,
    geometry: Geometry,
    *,
    batch_size: int = 32,
) -> Iterator[Prediction]:
    """Predictions in the order of ``images``; windows of several images share the encoder's batches.

    A batch that lacks windows is filled with the last one again, on a GPU up to ``batch_size``, so that the shape of
    a product, and with it its rounding, does not depend on which images come together.

    Args:
        model: in evaluation mode; its device is used.
        images: (resized image uint8 or normalised float [3, h, w], original size (H, W)).
        scorer: words and rules.
        geometry: window and stride.
        batch_size: windows in one call of the encoder.
    """
    if batch_size < 1:
        raise ValueError(f"batch size must be at least 1, got {batch_size}")
    device = next(model.parameters()).device
    fewest = _FEWEST_WINDOWS if device.type == "cpu" else max(batch_size, _FEWEST_WINDOWS)
    unfinished: list[_Open] = []
    waiting: list[tuple[_Open, Window]] = []

    def encode(count: int) -> None:
        batch, waiting[:count] = waiting[:count], []
        crops = [crop(image.image_3hw, window, geometry.window) for image, window in batch]
        crops += crops[-1:] * (fewest - len(crops))
        scored = window_scores(model, torch.stack(crops).to(device), scorer, geometry.normalisation)
        for (image, window), center_HW, values_GV in zip(
            batch, scored.center_BHW, scored.values_BGV, strict=False
        ):
            image.add(window, center_HW, values_GV)

    def finished() -> Iterator[Prediction]:
        while unfinished and unfinished[0].whole:
            yield unfinished.pop(0).finish(scorer.pixel_rule)

    for image_3hw, size in images:
        image = _Open(image_3hw, size, geometry)
        unfinished.append(image)
        waiting.extend((image, window) for window in image.windows)
        while len(waiting) >= batch_size:
            encode(batch_size)
        yield from finished()
    if waiting:
        encode(len(waiting))
    yield from finished()


def scorer_words(phrases: Sequence[Sequence[str]], *, first_label: int = 0) -> tuple[list[str], list[int]]:
    """Words in one list, with the output label of each, from one list of synonyms a class."""
    words = [word for group in phrases for word in group]
    labels = [first_label + number for number, group in enumerate(phrases) for _ in group]
    return words, labels
