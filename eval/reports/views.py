"""What is shown of one image's result: the picture, the prediction, the truth, and the regions of the centers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from segclip.eval.counts import pair_counts
from segclip.eval.datasets.dataset import SegmentationDataset
from segclip.eval.evaluate import predict_dataset
from segclip.eval.metrics import mean_iou
from segclip.eval.protocol import Protocol
from segclip.eval.reports.drawing import enlarge, overlay
from segclip.eval.reports.palette import Colour, named_colours, palette
from segclip.models.segclip import SegCLIP

__all__ = ["View", "class_colours", "make_views", "region_picture"]


@dataclass(frozen=True)
class View:
    """One image of a data set and what became of it.

    Attributes:
        key: the image's name in the data set.
        miou: mean IoU over the classes that are in it or were predicted in it; None where no pixel counts.
        image, prediction, truth, regions: pictures of the same size.
        labels: classes in the prediction or the truth, those with most pixels first.
    """

    key: str
    miou: float | None
    image: Image.Image
    prediction: Image.Image
    truth: Image.Image
    regions: Image.Image
    labels: tuple[int, ...]


def class_colours(dataset: SegmentationDataset) -> tuple[Colour, ...]:
    """A colour for each class; background is grey."""
    if dataset.has_background:
        return ((200, 200, 200), *named_colours(dataset.classes[1:]))
    return named_colours(dataset.classes)


def make_views(
    model: SegCLIP,
    dataset: SegmentationDataset,
    protocol: Protocol,
    numbers: Sequence[int],
    *,
    side: int = 320,
) -> dict[int, View]:
    """Views of the images at ``numbers``, by number.

    Args:
        model: in evaluation mode.
        dataset, protocol: as given to ``evaluate``.
        numbers: places in the data set; each is computed once.
        side: length of the longer side of each picture, in pixels.
    """
    names, colours = dataset.classes, class_colours(dataset)
    untouched = (0,) if dataset.has_background else ()
    wanted = list(dict.fromkeys(numbers))
    found: dict[int, View] = {}
    pairs = predict_dataset(model, dataset.pick(wanted), protocol)
    for number, (sample, prediction) in zip(wanted, pairs, strict=True):
        label_HW = prediction.labels().cpu()
        counts_CC = pair_counts(torch.from_numpy(sample.label_HW), label_HW, len(names))
        pixels = (counts_CC.sum(0) + counts_CC.sum(1)).numpy()
        miou = mean_iou(counts_CC)
        found[number] = View(
            sample.key,
            None if miou != miou else miou,
            enlarge(sample.image_HW3, side),
            overlay(sample.image_HW3, label_HW.numpy(), names, colours, side=side, untouched=untouched),
            overlay(sample.image_HW3, sample.label_HW, names, colours, side=side, untouched=untouched),
            region_picture(
                sample.image_HW3, prediction.regions_hw.cpu().numpy(), model.config.centers, side=side
            ),
            tuple(k for k in np.argsort(-pixels, kind="stable").tolist() if pixels[k]),
        )
    return found


def region_picture(
    image_HW3: NDArray[np.uint8], regions_hw: NDArray[np.int64], centers: int, *, side: int = 320
) -> Image.Image:
    """The picture divided among the network's centers, each with its number and its colour in every window.

    Args:
        image_HW3: the picture, uint8.
        regions_hw: window * ``centers`` + center of each pixel of the resized picture.
        centers: of the network.
        side: length of the result's longer side.
    """
    regions, compact = np.unique(regions_hw, return_inverse=True)
    colours = palette(centers)
    return overlay(
        image_HW3,
        compact.reshape(regions_hw.shape),
        [str(each) for each in (regions % centers).tolist()],
        [colours[each] for each in (regions % centers).tolist()],
        side=side,
        ignore=None,
    )
