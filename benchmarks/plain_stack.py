"""What one would write without this project: webdataset, Pillow, torchvision's transforms, open_clip's tokenizer.

Objects come through ``pipe:`` (``curl`` of a signed URL for S3, ``cat`` for files), as webdataset's manual has it.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from segclip.data_pipelines.patch_labels import patch_labels

__all__ = ["Superpixels", "pipe_curl", "plain_stream"]

Superpixels = Literal["none", "stored", "felzenszwalb"]
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SHUFFLE = 1000


def pipe_curl(url: str) -> str:
    """A webdataset URL that reads an HTTP URL by ``curl``."""
    return f"pipe:curl -s -f {shlex.quote(url)}"


def plain_stream(
    urls: list[str],
    *,
    batch_size: int,
    superpixels: Superpixels,
    size: int = 224,
    words: int = 32,
    patch_size: int = 16,
) -> Iterator[tuple[Any, ...]]:
    """Batches of one pass over some shards.

    Args:
        urls: as webdataset takes them.
        batch_size: samples in each but the last.
        superpixels: ``none`` passes over the maps unread, ``stored`` reads, crops and reduces them, ``felzenszwalb``
            computes them, with the paper's parameters.
        size: side of the pictures.
        words: tokens of a caption.
        patch_size: side of a patch.

    Yields:
        pictures float32 [B, 3, size, size], tokens int64 [B, words], captions, and, unless ``superpixels`` is
        ``none``, patch labels int64 [B, L].
    """
    import webdataset as wds

    wanted = ("jpg", "txt", "superpixels.png") if superpixels == "stored" else ("jpg", "txt")
    dataset = (
        wds.WebDataset(
            urls, shardshuffle=100, select_files=lambda name: name.endswith(wanted), empty_check=False
        )
        .shuffle(SHUFFLE)
        .decode("pil", only=["jpg", "txt", "superpixels.png"])
        .map(_transform(superpixels, _tokenizer(words), size, patch_size))
        .batched(batch_size)
    )
    return iter(dataset)


@lru_cache(maxsize=1)
def _tokenizer(words: int) -> Callable[[str], Tensor]:
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer: Callable[[str], Tensor] = SimpleTokenizer(context_length=words)
    return tokenizer


def _transform(
    superpixels: Superpixels, tokenizer: Callable[[str], Tensor], size: int, patch_size: int
) -> Callable[[dict[str, Any]], tuple[Any, ...]]:
    from torchvision import transforms
    from torchvision.transforms import functional

    crop = transforms.RandomResizedCrop(
        size, scale=(0.5, 1.0), interpolation=transforms.InterpolationMode.BICUBIC
    )
    finish = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    grid = (size // patch_size, size // patch_size)

    def without(sample: dict[str, Any]) -> tuple[Any, ...]:
        return finish(crop(sample["jpg"])), tokenizer(sample["txt"])[0], sample["txt"]

    def with_maps(sample: dict[str, Any]) -> tuple[Any, ...]:
        picture = sample["jpg"]
        # webdataset's decoder takes every PNG for a picture in colours.
        labels = (
            sample["superpixels.png"].getchannel(0) if superpixels == "stored" else _felzenszwalb(picture)
        )
        box = transforms.RandomResizedCrop.get_params(picture, list(crop.scale), list(crop.ratio))
        picture = functional.resized_crop(picture, *box, [size, size], transforms.InterpolationMode.BICUBIC)
        labels = functional.resized_crop(labels, *box, [size, size], transforms.InterpolationMode.NEAREST)
        in_patch = torch.from_numpy(patch_labels(np.asarray(labels, dtype=np.int64), grid))
        return finish(picture), tokenizer(sample["txt"])[0], sample["txt"], in_patch

    return without if superpixels == "none" else with_maps


def _felzenszwalb(picture: Image.Image) -> Image.Image:
    from skimage.segmentation import felzenszwalb

    labels_HW = felzenszwalb(np.asarray(picture), scale=224, sigma=0.9, min_size=224)
    return Image.fromarray(labels_HW.astype(np.int32))
