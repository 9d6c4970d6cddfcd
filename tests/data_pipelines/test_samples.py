from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from segclip.data_pipelines.config import CaptionParts, DataConfig, SuperpixelConfig
from segclip.data_pipelines.label_maps import encode_label_map
from segclip.data_pipelines.samples import Batch, SampleMaker, join_batches
from segclip.data_pipelines.shard import Shard, open_shard
from segclip.data_pipelines.shard_writer import pack


def quarters(height: int, width: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A picture of four flat quarters and the map of their ids 0 .. 3; grey level is 60 times the id."""
    ids = 2 * (np.arange(height)[:, None] >= height // 2) + (np.arange(width)[None, :] >= width // 2)
    return np.repeat((60 * ids)[..., None], 3, axis=2).astype(np.uint8), ids


def png(pixels: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def shard_of(members: dict[str, bytes], count: int = 1) -> Shard:
    return open_shard("s3://b/7.tar", bytearray(pack((f"k{n}", members) for n in range(count))[0]))


def make(members: dict[str, bytes], positions: list[int], patch_size: int = 4, **options: Any) -> Batch:
    config = DataConfig(shards="unused", **{"image_size": 32, "words": 9, **options})
    shard = shard_of(members)
    maker = SampleMaker(config, patch_size=patch_size, seed=3)
    return maker.make([(shard, 0)] * len(positions), np.asarray(positions))


PICTURE, IDS = quarters(60, 90)
MEMBERS = {"png": png(PICTURE), "txt": b"a cat and a dog on grass", "superpixels.png": encode_label_map(IDS)}


@pytest.mark.parametrize("flip", [False, True])
def test_picture_and_superpixels_are_cropped_alike(flip: bool) -> None:
    batch = make(MEMBERS, list(range(64)), flip=flip)
    assert batch.images.shape == (64, 3, 32, 32)
    assert batch.images.dtype == torch.uint8
    assert batch.superpixels.shape == (64, 64)
    assert batch.superpixels.dtype == batch.tokens.dtype == batch.positions.dtype == torch.int64
    # The grey level in a patch away from borders tells which quarter it shows.
    patches = batch.images[:, 0].float().reshape(64, 8, 4, 8, 4).permute(0, 1, 3, 2, 4).reshape(64, 64, 16)
    flat = patches.amax(-1) - patches.amin(-1) < 10
    shown = (patches.mean(-1) / 60).round().long()
    assert flat.float().mean() > 0.6
    assert torch.equal(shown[flat], batch.superpixels[flat])
    left_is_right = batch.superpixels[:, 0] % 2 > batch.superpixels[:, 7] % 2
    assert (0.2 < left_is_right.float().mean() < 0.8) if flip else not left_is_right.any()


def test_everything_depends_on_the_position_alone() -> None:
    parts = {"caption_parts": CaptionParts(full=0.4, object=0.3, ground=0.3), "flip": True}
    together = make(MEMBERS, list(range(100, 140)), **parts)
    for position in (100, 117, 139):
        alone = make(MEMBERS, [position], **parts)
        row = position - 100
        assert torch.equal(alone.images[0], together.images[row])
        assert torch.equal(alone.superpixels[0], together.superpixels[row])
        assert torch.equal(alone.tokens[0], together.tokens[row])
        assert alone.captions[0] == together.captions[row]
    assert len({image.numpy().tobytes() for image in together.images}) > 30


def test_caption_parts_come_as_often_as_asked() -> None:
    batch = make(
        MEMBERS,
        list(range(2000)),
        image_size=8,
        caption_parts=CaptionParts(full=0.8, object=0.12, ground=0.08),
    )
    counts = {text: batch.captions.count(text) for text in set(batch.captions)}
    assert set(counts) == {"a cat and a dog on grass", "a cat", "a dog", "grass"}
    assert abs(counts["a cat and a dog on grass"] - 1600) < 60
    assert abs(counts["a cat"] + counts["a dog"] - 240) < 50
    assert abs(counts["grass"] - 160) < 45
    # Whole captions are kept beside the texts drawn from them.
    assert (batch.caption_tokens == batch.caption_tokens[0]).all()
    whole = torch.tensor([text == "a cat and a dog on grass" for text in batch.captions])
    assert torch.equal(batch.tokens[whole], batch.caption_tokens[whole])
    assert (batch.tokens[~whole] != batch.caption_tokens[~whole]).any(dim=1).all()


def test_superpixels_are_computed_where_none_are_stored() -> None:
    members = {name: content for name, content in MEMBERS.items() if name != "superpixels.png"}
    batch = make(
        members, [0, 1], crop_scale=(1.0, 1.0), superpixels=SuperpixelConfig(segments=4, compactness=1)
    )
    assert batch.superpixels.unique().numel() >= 3


def test_the_mean_rule_can_be_chosen() -> None:
    whole = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.5, 1.5), "patch_size": 32}
    assert (
        make(MEMBERS, [0], **whole, superpixels=SuperpixelConfig(patch_label="mean")).superpixels.item() == 1
    )
    assert make(MEMBERS, [0], **whole).superpixels.item() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"txt": b" \n"}, "its caption is empty"),
        ({"txt": None}, "it has no caption"),
        ({"png": None}, "it has no picture .*needs one of .jpg"),
        (
            {"png": b"<html>not found"},
            "the picture .png is bad: it is no JPEG, PNG or WebP: it looks like a web page",
        ),
        ({"png": MEMBERS["png"][:60]}, "the picture .png is bad: it does not decode"),
        (
            {"superpixels.png": encode_label_map(IDS[:-1])},
            "its superpixel map is 90 x 59 but its picture 90 x 60",
        ),
        ({"superpixels.png": b"junk"}, "must be a PNG"),
    ],
)
def test_a_bad_sample_is_named_with_its_shard(change: dict[str, bytes | None], message: str) -> None:
    members = {name: content for name, content in {**MEMBERS, **change}.items() if content is not None}
    with pytest.raises(ValueError, match=f"sample 'k0' of shard s3://b/7.tar: .*{message}"):
        make(members, [0])


def test_sizes_must_fit() -> None:
    with pytest.raises(ValueError, match=r"data.image_size=32 is not a multiple of the patch size 5"):
        make(MEMBERS, [0], patch_size=5)


def test_parts_are_joined_in_the_order_of_positions() -> None:
    joined = join_batches([make(MEMBERS, [0, 2, 4]), make(MEMBERS, [1, 3])])
    straight = make(MEMBERS, [0, 1, 2, 3, 4])
    for name in ("images", "tokens", "caption_tokens", "superpixels", "positions"):
        assert torch.equal(getattr(joined, name), getattr(straight, name))
    assert joined.captions == straight.captions
    assert len(joined) == 5
