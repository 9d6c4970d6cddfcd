"""From the members of a sample to what the network takes: cropped uint8 picture, tokens, superpixel ids per patch.

Shapes: B samples, H and W of the training picture, T tokens, L patches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from segclip.data_pipelines.captions import caption_part, tokenizer
from segclip.data_pipelines.config import DataConfig
from segclip.data_pipelines.pictures import PICTURE_EXTENSIONS, decode_picture
from segclip.data_pipelines.png import decode_label_map
from segclip.data_pipelines.superpixels import compute_superpixels, patch_labels
from segclip.data_pipelines.tar import SampleIndex, group_samples
from segclip.keyed_random import Purpose, uniform_numpy

__all__ = ["Batch", "Box", "SampleMaker", "Shard", "crop_box", "join_batches", "open_shard"]

CROP_TRIES = 10
_CROP_DRAWS = 2 * CROP_TRIES + 2
SUPERPIXELS = "superpixels.png"


@dataclass(frozen=True)
class Batch:
    """Samples of one step of one rank, in the order of their positions.

    Attributes:
        images: uint8 [B, 3, H, W], not normalised.
        tokens: int64 [B, T], the texts the network sees.
        caption_tokens: int64 [B, T], the whole captions these texts are parts of.
        superpixels: int64 [B, L], superpixel id of each patch.
        captions: the B texts that ``tokens`` stand for.
        positions: int64 [B], places in the stream of the whole run; keys of all noise drawn for the samples.
    """

    images: Tensor
    tokens: Tensor
    caption_tokens: Tensor
    superpixels: Tensor
    captions: list[str]
    positions: Tensor

    def __len__(self) -> int:
        return len(self.captions)

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, from which copies to a GPU run beside computation."""
        return Batch(
            self.images.pin_memory(),
            self.tokens.pin_memory(),
            self.caption_tokens.pin_memory(),
            self.superpixels.pin_memory(),
            self.captions,
            self.positions.pin_memory(),
        )


@dataclass(frozen=True)
class Shard:
    """A shard in memory: its name for messages, its bytes uint8 [size], and where its samples lie."""

    name: str
    data: Tensor
    samples: list[SampleIndex]


@dataclass(frozen=True, slots=True)
class Box:
    """A crop in pixels."""

    top: int
    left: int
    height: int
    width: int


def open_shard(name: str, content: bytearray) -> Shard:
    """Index the samples of a shard. The content is shared, not copied."""
    return Shard(name, torch.from_numpy(np.frombuffer(content, dtype=np.uint8)), group_samples(content, name))


def crop_box(
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    draws: Sequence[float],
) -> Box:
    """A random crop by the rule of torchvision's ``RandomResizedCrop``.

    Args:
        height, width: of the whole picture.
        scale: range of the area's share.
        ratio: range of width over height, drawn uniformly in its logarithm.
        draws: 2 * CROP_TRIES + 2 uniform numbers in (0, 1): area and shape of each try, then row and column.
    """
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    for attempt in range(CROP_TRIES):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * draws[2 * attempt])
        shape = math.exp(log_low + (log_high - log_low) * draws[2 * attempt + 1])
        w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(draws[-2] * (height - h + 1)), int(draws[-1] * (width - w + 1)), h, w)
    # No try fits: the largest centred piece of an allowed shape.
    shape = min(max(width / height, ratio[0]), ratio[1])
    w, h = min(width, round(height * shape)), min(height, round(width / shape))
    return Box((height - h) // 2, (width - w) // 2, h, w)


class SampleMaker:
    """Turns members of samples into batches; everything random is keyed by position."""

    def __init__(self, config: DataConfig, *, patch_size: int, seed: int) -> None:
        """
        Raises:
            ValueError: the patch size does not divide the picture size.
        """
        if config.image_size % patch_size:
            raise ValueError(f"data.image_size={config.image_size} is not a multiple of the patch size {patch_size}")
        self.config = config
        self.seed = seed
        self.grid = (config.image_size // patch_size,) * 2
        self._tokenize = tokenizer(config.words)

    def make(self, samples: Sequence[tuple[Shard, int]], positions: NDArray[np.int64]) -> Batch:
        """The batch of some samples, given by shard and index in the shard, at some positions of the stream.

        Raises:
            ValueError: a sample lacks a member, its picture does not decode, or its caption is empty.
        """
        config, size, count = self.config, self.config.image_size, len(samples)
        crops = uniform_numpy(self.seed, Purpose.CROP, positions, _CROP_DRAWS).tolist()
        flips = uniform_numpy(self.seed, Purpose.FLIP, positions, 1)[:, 0] < 0.5 if config.flip else np.zeros(count, bool)
        parts = uniform_numpy(self.seed, Purpose.CAPTION, positions, 2).tolist()
        chances = config.caption_parts.chances
        images_BCHW = torch.empty((count, 3, size, size), dtype=torch.uint8)
        superpixels_BL = np.empty((count, self.grid[0] * self.grid[1]), dtype=np.int64)
        tokens_BT = np.empty((count, config.words), dtype=np.int64)
        caption_tokens_BT = np.empty_like(tokens_BT)
        captions = []
        for b, (shard, index) in enumerate(samples):
            sample = shard.samples[index]
            try:
                picture_CHW = self._picture(shard, sample)
                height, width = picture_CHW.shape[1:]
                map_HW = self._superpixels(shard, sample, picture_CHW)
                box = crop_box(height, width, config.crop_scale, config.crop_ratio, crops[b])
                images_BCHW[b] = _resize(picture_CHW, box, size)
                labels_HW = _resize_nearest(map_HW, box, size)
                if flips[b]:
                    images_BCHW[b] = images_BCHW[b].flip(-1)
                    labels_HW = labels_HW[:, ::-1]
                superpixels_BL[b] = patch_labels(labels_HW, self.grid, config.superpixels.patch_label)
                caption = self._caption(shard, sample)
                text = caption_part(caption, chances, parts[b][0], parts[b][1])
            except ValueError as error:
                raise ValueError(f"sample {sample.key!r} of shard {shard.name}: {error}") from error
            tokens_BT[b] = self._tokenize(text)
            caption_tokens_BT[b] = self._tokenize(caption)
            captions.append(text)
        return Batch(
            images_BCHW,
            torch.from_numpy(tokens_BT),
            torch.from_numpy(caption_tokens_BT),
            torch.from_numpy(superpixels_BL),
            captions,
            torch.from_numpy(np.asarray(positions, dtype=np.int64)),
        )

    def _picture(self, shard: Shard, sample: SampleIndex) -> Tensor:
        for extension in PICTURE_EXTENSIONS:
            if extension in sample.members:
                start, end = sample.members[extension]
                try:
                    return decode_picture(shard.data[start:end], extension, self.config.max_pixels)
                except ValueError as error:
                    raise ValueError(f"the picture {sample.key}.{extension} is bad: {error}; repair or remove it") from error
        raise ValueError(
            f"it has no picture (members: {', '.join(sample.members) or 'none'}): needs one of "
            f"{', '.join('.' + extension for extension in PICTURE_EXTENSIONS)}"
        )

    def _superpixels(self, shard: Shard, sample: SampleIndex, picture_CHW: Tensor) -> NDArray[np.integer]:
        place = sample.members.get(SUPERPIXELS)
        if place is None:
            return compute_superpixels(picture_CHW.permute(1, 2, 0).numpy(), self.config.superpixels)
        map_HW = decode_label_map(memoryview(shard.data.numpy())[place[0] : place[1]])
        if map_HW.shape != tuple(picture_CHW.shape[1:]):
            raise ValueError(
                f"its superpixel map is {map_HW.shape[1]} x {map_HW.shape[0]} but its picture {picture_CHW.shape[2]} x "
                f"{picture_CHW.shape[1]} pixels: compute the maps again"
            )
        return map_HW

    def _caption(self, shard: Shard, sample: SampleIndex) -> str:
        place = sample.members.get("txt")
        if place is None:
            raise ValueError("it has no caption: needs a member .txt")
        caption = bytes(memoryview(shard.data.numpy())[place[0] : place[1]]).decode("utf-8", "replace").strip()
        if not caption:
            raise ValueError("its caption is empty: write a text or remove the sample")
        return caption


def _resize(picture_CHW: Tensor, box: Box, size: int) -> Tensor:
    """Antialiased bicubic resize of a crop: uint8 [3, size, size]."""
    cut_BCHW = picture_CHW[None, :, box.top : box.top + box.height, box.left : box.left + box.width]
    return interpolate(cut_BCHW, (size, size), mode="bicubic", antialias=True)[0]


def _resize_nearest(map_HW: NDArray[np.integer], box: Box, size: int) -> NDArray[np.integer]:
    """Nearest resize of a crop, by pixel centres: [size, size]."""
    steps = np.arange(size) + 0.5
    rows = box.top + (steps * (box.height / size)).astype(np.int64)
    columns = box.left + (steps * (box.width / size)).astype(np.int64)
    return map_HW[rows[:, None], columns]


def join_batches(parts: Sequence[Batch]) -> Batch:
    """One batch of several, its samples sorted by position."""
    if len(parts) == 1:
        return parts[0]
    positions_B = torch.cat([part.positions for part in parts])
    order_B = torch.argsort(positions_B)
    captions = [caption for part in parts for caption in part.captions]
    return Batch(
        torch.cat([part.images for part in parts])[order_B],
        torch.cat([part.tokens for part in parts])[order_B],
        torch.cat([part.caption_tokens for part in parts])[order_B],
        torch.cat([part.superpixels for part in parts])[order_B],
        [captions[i] for i in order_B.tolist()],
        positions_B[order_B],
    )
