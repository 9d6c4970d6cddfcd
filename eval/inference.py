"""From an image to class scores per pixel: resize, windows, centers, words.

The network gathers patches into G centers. A pixel belongs to the center whose upsampled soft assignment is
largest there, and it takes that center's class scores. So scores are computed for G centers, not for every
pixel, and are spread over the pixels by index.

Shape letters: B windows, H W a window's or image's pixels, h w the resized image, L patches, G centers, N
words, C output labels (the classes, with background in front where there is one), E embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from segclip.eval.protocol import Geometry

if TYPE_CHECKING:
    from segclip.models.segclip import SegCLIP

__all__ = [
    "ClassScorer",
    "Prediction",
    "Window",
    "label_map",
    "patches_to_pixels",
    "predict",
    "resize",
    "resize_scores",
    "resized_size",
    "slide",
    "window_grid",
    "window_scores",
]

_LABEL_BYTES = 256 * 2**20  # label_map upsamples as many classes at a time as fit into this


# ---------------------------------------------------------------------------------------------- geometry


@dataclass(frozen=True)
class Window:
    """Half-open pixel ranges of one window in the resized image."""

    top: int
    left: int
    bottom: int
    right: int


def resized_size(height: int, width: int, short_side: int, long_side_max: int | None) -> tuple[int, int]:
    """Size after scaling the short side to ``short_side``, the long side bounded. Rounds half up."""
    scale = short_side / min(height, width)
    if long_side_max is not None:
        scale = min(scale, long_side_max / max(height, width))
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def resize(image_HW3: NDArray[np.uint8], geometry: Geometry) -> Tensor:
    """uint8 [3, h, w]: the image resized as ``geometry`` says, rounded to 8 bits as image libraries do."""
    image_3HW = torch.from_numpy(np.require(image_HW3, requirements=["C", "W"])).permute(2, 0, 1)
    size = resized_size(image_HW3.shape[0], image_HW3.shape[1], geometry.short_side, geometry.long_side_max)
    if size == image_HW3.shape[:2]:
        return image_3HW.contiguous()
    resized = F.interpolate(
        image_3HW[None].float(),
        size=size,
        mode=geometry.filter,
        align_corners=False,
        antialias=geometry.antialias,
    )[0]
    return resized.round().clamp(0, 255).to(torch.uint8)


def window_grid(height: int, width: int, window: int, stride: int) -> list[Window]:
    """Windows that cover every pixel, row by row; the last of a row or column is shifted back to the edge.

    A side shorter than ``window`` gets one window that ends at the edge (``predict`` pads what it feeds the
    encoder).
    """

    def starts(length: int) -> list[int]:
        count = max(length - window + stride - 1, 0) // stride + 1
        return [max(min(number * stride, length - window), 0) for number in range(count)]

    return [
        Window(top, left, min(top + window, height), min(left + window, width))
        for top in starts(height)
        for left in starts(width)
    ]


# ---------------------------------------------------------------------------------------------- scores


@dataclass(frozen=True)
class ClassScorer:
    """Scores of the output labels for each center of a window.

    Attributes:
        text_NE: unit text embedding of each word, float32.
        logit_scale: factor on the cosine.
        rule: ``softmax``, or ``softmax_times_top_k`` (the original's).
        top_k: words kept for a window under ``softmax_times_top_k``.
        word_label_N: output label of each word, int64, for synonyms and background words; None: word i is
            class i.
        threshold: None, or the score below which a center is background (label 0; classes then start at 1).
    """

    text_NE: Tensor
    logit_scale: float
    rule: Literal["softmax", "softmax_times_top_k"] = "softmax"
    top_k: int = 5
    word_label_N: Tensor | None = None
    threshold: float | None = None

    @property
    def labels(self) -> int:
        """Number C of output labels."""
        classes = len(self.text_NE) if self.word_label_N is None else int(self.word_label_N.max()) + 1
        return classes + (self.threshold is not None)

    def __call__(self, center_embed_BGE: Tensor, image_embed_BE: Tensor) -> Tensor:
        """float32 [B, G, C] from un-normalised embeddings.

        ``softmax``: S = softmax_N(scale * cos(center, word)). ``softmax_times_top_k``: S times the same
        softmax over the words that are among the ``top_k`` of the window's own embedding, 0 elsewhere. A
        class scores as its best word. With a threshold, label 0 scores 1 for centers whose best class lies
        below min(threshold, best score of any center of the window), else 0: at least one center of each
        window stays foreground.
        """
        centers = F.normalize(center_embed_BGE.float(), dim=-1)
        logits_BGN = self.logit_scale * (centers @ self.text_NE.T)
        scores = logits_BGN.softmax(dim=-1)
        if self.rule == "softmax_times_top_k":
            window_BN = F.normalize(image_embed_BE.float(), dim=-1) @ self.text_NE.T
            kept = window_BN.topk(min(self.top_k, window_BN.shape[-1]), dim=-1).indices
            out_BN = torch.ones_like(window_BN, dtype=torch.bool).scatter_(1, kept, False)
            scores = scores * logits_BGN.masked_fill(out_BN[:, None], float("-inf")).softmax(dim=-1)
        if self.word_label_N is not None:
            classes = int(self.word_label_N.max()) + 1
            index = self.word_label_N.expand_as(scores)
            empty = scores.new_zeros(*scores.shape[:-1], classes)
            scores = empty.scatter_reduce(-1, index, scores, reduce="amax", include_self=True)
        if self.threshold is None:
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
    """What is known of a batch of windows: a center for each pixel and scores for each center."""

    center_BHW: Tensor
    scores_BGC: Tensor

    def pixels(self, index: int) -> Tensor:
        """Scores float32 [C, H, W] of one window."""
        return self.scores_BGC[index].T[:, self.center_BHW[index]]


@torch.inference_mode()
def window_scores(
    model: SegCLIP, windows_B3HW: Tensor, scorer: ClassScorer | Callable[[Tensor, Tensor], Tensor]
) -> WindowScores:
    """Encode windows once and score their centers.

    Args:
        model: in evaluation mode.
        windows_B3HW: uint8, or float already normalised, on the model's device; sides divisible by the patch
            size.
        scorer: words and rules.
    """
    vision = model.encode_image(windows_B3HW)
    height, width = windows_B3HW.shape[-2:]
    pixels_BGHW = patches_to_pixels(vision.assignment.soft_BGL, vision.grid, (height, width))
    return WindowScores(pixels_BGHW.argmax(dim=1), scorer(vision.center_embed_BGE, vision.image_embed_BE))


# ---------------------------------------------------------------------------------------------- whole images


@dataclass(frozen=True)
class Prediction:
    """One image's result.

    Attributes:
        scores_Chw: float32 scores at the resized size, averaged over the windows.
        regions_hw: int64 center of each pixel, numbered through all windows (window * G + center); where
            windows overlap, the last one's.
        size: (H, W) of the original image.
    """

    scores_Chw: Tensor
    regions_hw: Tensor
    size: tuple[int, int]

    def labels(self) -> Tensor:
        """uint8 or int64 label of each original pixel, [H, W]."""
        return label_map(self.scores_Chw, self.size)


def resize_scores(scores_Chw: Tensor, size: tuple[int, int]) -> Tensor:
    """Scores bilinear in float32 to [C, H, W] for ``size`` = (H, W)."""
    if tuple(scores_Chw.shape[-2:]) == tuple(size):
        return scores_Chw
    return F.interpolate(scores_Chw[None].float(), size=size, mode="bilinear", align_corners=False)[0]


def label_map(scores_Chw: Tensor, size: tuple[int, int]) -> Tensor:
    """Best label of each pixel at ``size``, int64 [H, W]; the lowest of equals.

    Classes are upsampled a few at a time and only the best is kept, so memory does not grow with the class
    count. Labels that score 0 everywhere are never upsampled.
    """
    height, width = size
    present = scores_Chw.flatten(1).amax(dim=1).gt(0).nonzero()[:, 0]
    best_HW = scores_Chw.new_zeros(height, width)
    label_HW = torch.zeros(height, width, dtype=torch.long, device=scores_Chw.device)
    at_once = max(_LABEL_BYTES // (4 * height * width), 1)
    for start in range(0, len(present), at_once):
        part = present[start : start + at_once]
        values, index = resize_scores(scores_Chw[part], size).max(dim=0)
        better = values > best_HW
        label_HW = torch.where(better, part[index], label_HW)
        best_HW = torch.where(better, values, best_HW)
    return label_HW


class _Canvas:
    """Collects the windows of one image."""

    def __init__(self, image_3hw: Tensor, size: tuple[int, int], geometry: Geometry) -> None:
        self.image_3hw = image_3hw
        self.size = size
        self.height, self.width = int(image_3hw.shape[-2]), int(image_3hw.shape[-1])
        self.side = geometry.window
        self.windows = window_grid(self.height, self.width, geometry.window, geometry.stride)
        self.done = 0
        self._sum_Chw: Tensor | None = None
        self._count_hw: Tensor | None = None
        self._regions_hw: Tensor | None = None

    def crop(self, window: Window) -> Tensor:
        """[3, side, side] of the image; where it is smaller than a window, the border pixels are repeated."""
        crop = self.image_3hw[:, window.top : window.bottom, window.left : window.right]
        below, right = self.side - crop.shape[1], self.side - crop.shape[2]
        if not below and not right:
            return crop
        rows = torch.arange(self.side).clamp(max=crop.shape[1] - 1)
        columns = torch.arange(self.side).clamp(max=crop.shape[2] - 1)
        return crop[:, rows][:, :, columns]

    def add(self, window: Window, scored: WindowScores, index: int) -> None:
        rows, columns = slice(window.top, window.bottom), slice(window.left, window.right)
        inside = (slice(0, window.bottom - window.top), slice(0, window.right - window.left))
        scores_CHW = scored.pixels(index)[:, inside[0], inside[1]]
        centers_HW = scored.center_BHW[index][inside]
        if self._sum_Chw is None or self._count_hw is None or self._regions_hw is None:
            self._sum_Chw = scores_CHW.new_zeros(scores_CHW.shape[0], self.height, self.width)
            self._count_hw = scores_CHW.new_zeros(self.height, self.width)
            self._regions_hw = centers_HW.new_zeros(self.height, self.width)
        self._sum_Chw[:, rows, columns] += scores_CHW
        self._count_hw[rows, columns] += 1
        self._regions_hw[rows, columns] = centers_HW + self.done * scored.scores_BGC.shape[1]
        self.done += 1

    def finish(self) -> Prediction:
        assert self._sum_Chw is not None
        assert self._count_hw is not None
        assert self._regions_hw is not None
        return Prediction(self._sum_Chw / self._count_hw, self._regions_hw, self.size)


@torch.inference_mode()
def predict(
    model: SegCLIP,
    images: Iterable[tuple[Tensor, tuple[int, int]]],
    scorer: ClassScorer | Callable[[Tensor, Tensor], Tensor],
    geometry: Geometry,
    *,
    batch_size: int = 32,
) -> Iterator[Prediction]:
    """Predictions in the order of ``images``; windows of several images share the encoder's batches.

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
    open_canvases: list[_Canvas] = []
    waiting: list[tuple[_Canvas, Window]] = []

    def encode(count: int) -> None:
        batch, waiting[:count] = waiting[:count], []
        windows_B3HW = torch.stack([canvas.crop(window) for canvas, window in batch])
        scored = window_scores(model, windows_B3HW.to(device), scorer)
        for index, (canvas, window) in enumerate(batch):
            canvas.add(window, scored, index)

    def finished() -> Iterator[Prediction]:
        while open_canvases and open_canvases[0].done == len(open_canvases[0].windows):
            yield open_canvases.pop(0).finish()

    for image_3hw, size in images:
        canvas = _Canvas(image_3hw, size, geometry)
        open_canvases.append(canvas)
        waiting.extend((canvas, window) for window in canvas.windows)
        while len(waiting) >= batch_size:
            encode(batch_size)
        yield from finished()
    if waiting:
        encode(len(waiting))
    yield from finished()


def slide(
    model: SegCLIP, image_3hw: Tensor, scorer: ClassScorer, *, window: int, stride: int, batch_size: int = 32
) -> Tensor:
    """Scores float32 [C, h, w] of one resized image: all windows, overlaps averaged."""
    height, width = int(image_3hw.shape[-2]), int(image_3hw.shape[-1])
    geometry = Geometry(
        short_side=min(height, width),
        long_side_max=None,
        window=window,
        stride=stride,
        filter="bilinear",
        antialias=False,
    )
    (result,) = predict(model, [(image_3hw, (height, width))], scorer, geometry, batch_size=batch_size)
    return result.scores_Chw


def scorer_words(phrases: Sequence[Sequence[str]], *, first_label: int = 0) -> tuple[list[str], list[int]]:
    """Words in one list, with the output label of each, from one list of synonyms a class."""
    words = [word for group in phrases for word in group]
    labels = [first_label + number for number, group in enumerate(phrases) for _ in group]
    return words, labels
