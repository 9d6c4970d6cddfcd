"""From the members of a sample to what the network takes: cropped uint8 picture, tokens, superpixel ids per
patch.

Shapes: B samples, H and W of the training picture, T tokens, L patches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segclip.data_pipelines.captions import caption_part, tokenizer
from segclip.data_pipelines.config import DataConfig
from segclip.data_pipelines.crops import CROP_DRAWS, crop_box, resize, resize_nearest
from segclip.data_pipelines.errors import BadSample
from segclip.data_pipelines.label_maps import SUPERPIXELS, decode_label_map
from segclip.data_pipelines.patch_labels import patch_labels
from segclip.data_pipelines.pictures import (
    PICTURE_EXTENSIONS,
    PictureError,
    decode_picture,
    picture_extension,
)
from segclip.data_pipelines.shard import Shard
from segclip.data_pipelines.superpixels import compute_superpixels
from segclip.data_pipelines.tar import SampleIndex
from segclip.keyed_random import Purpose, uniform_numpy

__all__ = ["Batch", "Replace", "SampleMaker", "join_batches"]


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


Replace = Callable[[int, BadSample], tuple[Shard, int]]
_NO_PICTURE = torch.empty((3, 0, 0), dtype=torch.uint8)
_NO_MAP: NDArray[np.integer] = np.empty((0, 0), dtype=np.uint8)


class SampleMaker:
    """Turns members of samples into batches; everything random is keyed by position."""

    def __init__(self, config: DataConfig, *, patch_size: int, seed: int) -> None:
        """
        Raises:
            ValueError: the patch size does not divide the picture size.
        """
        if config.image_size % patch_size:
            raise ValueError(
                f"data.image_size={config.image_size} is not a multiple of the patch size {patch_size}"
            )
        self.config = config
        self.seed = seed
        self.grid = (config.image_size // patch_size,) * 2
        self._tokenize = tokenizer(config.words)

    def make(
        self,
        samples: Sequence[tuple[Shard, int]],
        positions: NDArray[np.int64],
        replace: Replace | None = None,
    ) -> Batch:
        """The batch of some samples, given by shard and index in the shard, at some positions of the stream.

        Args:
            samples: shard and index in it of each.
            positions: int64 [B].
            replace: given the number in the batch of a bad sample and what is wrong with it, names another to
                take instead; without it a bad sample is an error.

        Raises:
            BadSample: a sample lacks a member, its picture does not decode, or its caption is empty.
        """
        config, size = self.config, self.config.image_size
        captions, pictures, maps = self._decoded(list(samples), replace)
        crops = uniform_numpy(self.seed, Purpose.CROP, positions, CROP_DRAWS).tolist()
        boxes = [
            crop_box(picture_CHW.shape[1], picture_CHW.shape[2], config.crop_scale, config.crop_ratio, draws)
            for picture_CHW, draws in zip(pictures, crops, strict=True)
        ]
        images_BCHW = torch.empty((len(samples), 3, size, size), dtype=torch.uint8)
        for b, (picture_CHW, box) in enumerate(zip(pictures, boxes, strict=True)):
            images_BCHW[b] = resize(picture_CHW, box, size)
        cut_maps = [resize_nearest(map_HW, box, size) for map_HW, box in zip(maps, boxes, strict=True)]
        # Mostly bytes; kept as narrow as the widest of them.
        maps_BHW = np.stack(cut_maps)
        if config.flip:
            mirrored_B = uniform_numpy(self.seed, Purpose.FLIP, positions, 1)[:, 0] < 0.5
            maps_BHW[mirrored_B] = maps_BHW[mirrored_B, :, ::-1]
            images_BCHW[torch.from_numpy(mirrored_B)] = images_BCHW[torch.from_numpy(mirrored_B)].flip(-1)
        draws = uniform_numpy(self.seed, Purpose.CAPTION, positions, 2).tolist()
        chances = config.caption_parts.chances
        texts = [caption_part(caption, chances, *draw) for caption, draw in zip(captions, draws, strict=True)]
        return Batch(
            images_BCHW,
            torch.from_numpy(np.stack([self._tokenize(text) for text in texts])),
            torch.from_numpy(np.stack([self._tokenize(caption) for caption in captions])),
            torch.from_numpy(patch_labels(maps_BHW, self.grid, config.superpixels.patch_label)),
            texts,
            torch.from_numpy(np.asarray(positions, dtype=np.int64)),
        )

    def _decoded(
        self, samples: list[tuple[Shard, int]], replace: Replace | None
    ) -> tuple[list[str], list[Tensor], list[NDArray[np.integer]]]:
        """Captions, pictures and superpixel maps of a batch."""
        # Stage by stage over the whole batch rather than sample by sample: that keeps each decoder's code and
        # tables in cache and halves the time. What is bad is left empty, and filled one by one.
        bad: dict[int, BadSample] = {}
        captions, pictures, maps = [""] * len(samples), [_NO_PICTURE] * len(samples), [_NO_MAP] * len(samples)

        def caption(b: int, shard: Shard, sample: SampleIndex) -> None:
            captions[b] = self._caption(shard, sample)

        def picture(b: int, shard: Shard, sample: SampleIndex) -> None:
            pictures[b] = self._picture(shard, sample)

        def superpixels(b: int, shard: Shard, sample: SampleIndex) -> None:
            maps[b] = self._superpixels(shard, sample, pictures[b])

        stages = (caption, picture, superpixels)
        for stage in stages:
            for b, (shard, index) in enumerate(samples):
                if b in bad:
                    continue
                try:
                    stage(b, shard, shard.samples[index])
                except BadSample as error:
                    if replace is None:
                        raise
                    bad[b] = error
        for b in sorted(bad):
            while b in bad:
                assert replace is not None
                shard, index = replace(b, bad.pop(b))
                try:
                    for stage in stages:
                        stage(b, shard, shard.samples[index])
                except BadSample as error:
                    bad[b] = error
        return captions, pictures, maps

    def _picture(self, shard: Shard, sample: SampleIndex) -> Tensor:
        """Decoded picture of a sample: uint8 [3, H, W]."""
        extension = picture_extension(sample.members)
        if extension is None:
            allowed = ", ".join("." + each for each in PICTURE_EXTENSIONS)
            held = ", ".join(sample.members) or "none"
            what = f"it has no picture (members: {held}): needs one of {allowed}"
            raise _bad(shard, sample, "picture_missing", what)
        content, config = shard.member(sample, extension), self.config
        try:
            return decode_picture(content, config.max_pixels, config.max_decompression)
        except PictureError as error:
            what = f"the picture .{extension} is bad: {error}; repair or remove it"
            raise _bad(shard, sample, f"picture_{error.cause}", what) from error

    def _superpixels(self, shard: Shard, sample: SampleIndex, picture_CHW: Tensor) -> NDArray[np.integer]:
        """Stored or computed superpixel ids of a picture: [H, W]."""
        _, height, width = picture_CHW.shape
        try:
            if SUPERPIXELS not in sample.members:
                return compute_superpixels(picture_CHW.permute(1, 2, 0).numpy(), self.config.superpixels)
            return decode_label_map(shard.member(sample, SUPERPIXELS), (height, width))
        except ValueError as error:
            raise _bad(shard, sample, "superpixels", str(error)) from error

    def _caption(self, shard: Shard, sample: SampleIndex) -> str:
        """Whole caption of a sample."""
        if "txt" not in sample.members:
            raise _bad(shard, sample, "caption_missing", "it has no caption: needs a member .txt")
        caption = str(shard.member(sample, "txt"), "utf-8", "replace").strip()
        if not caption:
            raise _bad(
                shard, sample, "caption_empty", "its caption is empty: write a text or remove the sample"
            )
        return caption


def _bad(shard: Shard, sample: SampleIndex, cause: str, what: str) -> BadSample:
    return BadSample(cause, f"sample {sample.key!r} of shard {shard.name}: {what}")


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
