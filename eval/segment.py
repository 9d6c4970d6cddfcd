"""One's own pictures by one's own words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from segclip.eval.datasets.images import read_image, to_rgb
from segclip.eval.evaluate import scorer_from_phrases
from segclip.eval.inference import predict
from segclip.eval.protocol import Protocol, load_protocol
from segclip.eval.reports.palette import named_colours
from segclip.eval.text import TextBank
from segclip.eval.weights import default_protocol
from segclip.eval.windows import resize
from segclip.eval.words import BACKGROUND_WORDS, check_classes, distinct_words, plain
from segclip.models.segclip import SegCLIP

__all__ = [
    "Background",
    "Picture",
    "Segmentation",
    "Segmenter",
    "segment",
]

Background = Literal["threshold", "words"]
Picture = str | Path | Image.Image | NDArray[np.uint8] | Tensor

_THRESHOLD = 0.5


@dataclass(frozen=True)
class Segmentation:
    """A picture divided among words.

    Attributes:
        labels_HW: int64, index into ``names`` of each pixel of the picture.
        names: the classes as given; with a background, "background" stands before them as label 0.
        scores_Chw: float32 score of each name at the size the model worked at.
        regions_hw: int64, which of the network's centers each pixel belongs to, numbered through all windows
            (window * number of centers + center), at the same size.
    """

    labels_HW: NDArray[np.int64]
    names: tuple[str, ...]
    scores_Chw: NDArray[np.float32]
    regions_hw: NDArray[np.int64]

    def pixels(self) -> dict[str, int]:
        """Number of the picture's pixels that each name got."""
        counts = np.bincount(self.labels_HW.ravel(), minlength=len(self.names))
        return dict(zip(self.names, counts.tolist(), strict=True))

    def shares(self) -> dict[str, float]:
        """Part of the picture's pixels that each name got; the parts sum to 1."""
        return {name: pixels / self.labels_HW.size for name, pixels in self.pixels().items()}


class Segmenter:
    """Segments any number of pictures by one list of words; the words are embedded once.

    Args:
        model: put into evaluation mode.
        classes: a word or phrase for each class, or a list of synonyms; the first synonym names the class.
        background: None gives every pixel to a class. "threshold" leaves pixels whose best score is below
            ``threshold`` to the background. "words" leaves pixels to it that fit one of ``background_words``
            best.
        threshold: for "threshold"; 0.5 if not given. In each window the best-fitting region stays foreground.
        background_words: for "words"; ``BACKGROUND_WORDS`` if not given. Words that are classes are left out.
        protocol: sizes, templates and score rule: a name, a YAML file or a ``Protocol``; if not given, the one that
            the network's card names, else ``photo``.
        batch_size: windows in one call of the encoder.

    Attributes:
        names, colours, words: name, colour and phrases of each label; "background" is label 0 where there is one.
        threshold: that is used, or None.
        centers: of the network, which divides each window into as many regions at most.

    Raises:
        ValueError: classes or options that make no sense together.
    """

    def __init__(
        self,
        model: SegCLIP,
        classes: Sequence[str | Sequence[str]],
        *,
        background: Background | None = None,
        threshold: float | None = None,
        background_words: Sequence[str] | None = None,
        protocol: str | Path | Protocol | None = None,
        batch_size: int = 32,
    ) -> None:
        phrases = check_classes(classes)
        if background not in (None, "threshold", "words"):
            raise ValueError(f"background must be None, 'threshold' or 'words', got {background!r}")
        if threshold is not None and background != "threshold":
            raise ValueError(f"a threshold ({threshold}) is only used with background='threshold'")
        if background_words is not None and background != "words":
            raise ValueError("background words are only used with background='words'")
        if background == "threshold":
            threshold = _THRESHOLD if threshold is None else threshold
            if not 0 < threshold < 1:
                raise ValueError(f"the threshold must lie between 0 and 1, got {threshold}")
            if sum(map(len, phrases)) == 1:
                raise ValueError(
                    f"with the single class {phrases[0][0]!r} every score is 1, so no threshold finds a "
                    "background; add classes or use background='words'"
                )
        others: tuple[str, ...] = ()
        if background == "words":
            asked = {plain(word) for group in phrases for word in group}
            given = BACKGROUND_WORDS if background_words is None else background_words
            others = tuple(word for word in given if plain(word) not in asked)
            if not others:
                raise ValueError("no background word is left beside the classes; give others")
            distinct_words("background word", ((word,) for word in others))
        if not isinstance(protocol, Protocol):
            protocol = load_protocol(default_protocol(model.card) if protocol is None else protocol)
        classes_named = tuple(group[0] for group in phrases)
        if background and "background" in map(plain, classes_named):
            raise ValueError(
                "a class is called 'background' while the background is found by rule; name it otherwise"
            )
        self.names = (("background",) if background else ()) + classes_named
        self.words = ((others,) if background else ()) + phrases
        self.colours = (((205, 205, 205),) if background else ()) + named_colours(classes_named)
        self.threshold = threshold
        self.centers = model.config.centers
        self._model = model.eval()
        self._geometry = protocol.geometry(model.config)
        self._batch_size = batch_size
        bank = TextBank(model, protocol.templates, protocol.template_averaging)
        self._scorer = scorer_from_phrases(
            model, phrases, bank, protocol, threshold=threshold, background_words=others
        )

    def __call__(self, image: Picture) -> Segmentation:
        """Segment one picture.

        Args:
            image: a file's path, a Pillow image, uint8 [H, W, 3] as an array, or uint8 [3, H, W] as a tensor.

        Raises:
            ValueError: the picture does not read or has another shape or type.
        """
        image_HW3 = as_array(image)
        size = (image_HW3.shape[0], image_HW3.shape[1])
        (found,) = predict(
            self._model,
            [(resize(image_HW3, self._geometry), size)],
            self._scorer,
            self._geometry,
            batch_size=self._batch_size,
        )
        return Segmentation(
            found.labels().cpu().numpy(),
            self.names,
            found.scores_Chw.float().cpu().numpy(),
            found.regions_hw.cpu().numpy(),
        )


def segment(
    model: SegCLIP,
    image: Picture,
    classes: Sequence[str | Sequence[str]],
    *,
    background: Background | None = None,
    threshold: float | None = None,
    background_words: Sequence[str] | None = None,
    protocol: str | Path | Protocol | None = None,
) -> Segmentation:
    """Divide a picture among words; arguments as in ``Segmenter``, which suits many pictures better."""
    segmenter = Segmenter(
        model,
        classes,
        background=background,
        threshold=threshold,
        background_words=background_words,
        protocol=protocol,
    )
    return segmenter(image)


def as_array(image: Picture) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] of whatever a caller has a picture in.

    Raises:
        ValueError: it does not read, or its shape or type is none of those ``Segmenter`` takes.
    """
    if isinstance(image, (str, Path)):
        return read_image(image, upright=True)
    if isinstance(image, Image.Image):
        return to_rgb(ImageOps.exif_transpose(image))
    if isinstance(image, Tensor):
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(
                f"a picture tensor must be uint8 [3, H, W], got {image.dtype} {list(image.shape)}"
            )
        image = image.permute(1, 2, 0).cpu().numpy()
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"a picture array must be uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
    return image
