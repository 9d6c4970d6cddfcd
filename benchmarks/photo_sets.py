"""Shards of photos, made at run time from the pictures that scikit-image brings with it.

Each sample is another crop of one of six photos, 341 x 256 pixels, JPEG of quality 90, with a caption of its own and
a stored superpixel map. The same seed gives the same shards.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segclip.data_pipelines.label_maps import encode_label_map
from segclip.data_pipelines.manifest import Manifest
from segclip.data_pipelines.pictures import encode_jpeg
from segclip.data_pipelines.shard_writer import Sample, pack, write_set
from segclip.data_pipelines.superpixels import SuperpixelMethod, compute_superpixels

__all__ = ["SIZE", "captions", "photos", "write_photo_set"]

SIZE = (341, 256)  # width, height
SUPERPIXELS = SuperpixelMethod(segments=64)
_WORDS = """
a the two three small large old young red green blue white dark bright wooden empty busy quiet wet
person man woman child dog cat horse bird bus train bicycle boat table chair window street field
beach mountain kitchen market bridge garden river tree flower plate cup book phone camera umbrella
hat coat ball kite board rocket motorcycle standing sitting riding holding watching eating walking
waiting playing looking near behind beside above under with and on in of at from to during before
after morning evening winter summer rain snow sunlight shadow crowd
"""


@lru_cache(maxsize=1)
def _originals() -> tuple[NDArray[np.uint8], ...]:
    """The colour photos inside scikit-image's wheel; none is downloaded."""
    from skimage import data

    left, right, _ = data.stereo_motorcycle()
    return (data.astronaut(), data.chelsea(), data.coffee(), data.rocket(), left, right)


def photos(count: int, seed: int = 0) -> Iterator[NDArray[np.uint8]]:
    """Crops of 40 to 100 % of the largest that has the right shape: uint8 [256, 341, 3] each."""
    width, height = SIZE
    for number in range(count):
        draw = random.Random(seed * 1_000_003 + number)
        original_HW3 = _originals()[number % len(_originals())]
        rows, columns = original_HW3.shape[:2]
        share = draw.uniform(0.4, 1.0) ** 0.5 * min(rows / height, columns / width)
        h, w = round(height * share), round(width * share)
        top, left = draw.randint(0, rows - h), draw.randint(0, columns - w)
        cut = Image.fromarray(original_HW3[top : top + h, left : left + w])
        picture = cut.resize(SIZE, Image.Resampling.BICUBIC)
        yield np.asarray(
            picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draw.random() < 0.5 else picture
        )


def captions(count: int, seed: int = 0) -> list[str]:
    """Captions of 7 to 15 words, no two the same."""
    draw, words = random.Random(seed), _WORDS.split()
    found: dict[str, None] = {}
    while len(found) < count:
        found[" ".join(draw.choices(words, k=draw.randint(7, 15)))] = None
    return list(found)


def write_photo_set(
    folder: Path, shards: int, per_shard: int, *, maps: bool = True, distinct: int = 400
) -> Manifest:
    """Write shards of photos and their manifest.

    Args:
        folder: where to.
        shards, per_shard: how many, and samples in each.
        maps: store superpixel maps.
        distinct: pictures that are made; a larger set shows each of them several times, with other captions.
    """
    made: list[dict[str, bytes]] = []
    for picture_HW3 in photos(min(distinct, shards * per_shard)):
        members = {"jpg": encode_jpeg(picture_HW3)}
        if maps:
            members["superpixels.png"] = encode_label_map(compute_superpixels(picture_HW3, SUPERPIXELS))
        made.append(members)
    texts = captions(shards * per_shard)

    def make_shard(number: int) -> tuple[bytes, int]:
        start = number * per_shard
        samples: list[Sample] = [
            (f"{index:08d}", {**made[index % len(made)], "txt": texts[index].encode()})
            for index in range(start, start + per_shard)
        ]
        return pack(samples)

    source: dict[str, Any] = {"generator": "photos of scikit-image"}
    return write_set(
        str(folder),
        make_shard,
        shards,
        processes=1,
        superpixels=SUPERPIXELS if maps else None,
        source=source,
    )
