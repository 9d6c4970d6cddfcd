"""Sizes of ranks' shares and of passes: which fit, and what is said of those that do not."""

from __future__ import annotations

import pytest
import torch

from segclip.data_pipelines.samples import Batch
from segclip.trainer.micro_batches import batch_sizes, split_batch


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((768, 4, None), (192, 192)),
        ((768, 4, 96), (192, 96)),
        ((768, 4, 192), (192, 192)),
        ((768, 4, 500), (192, 192)),
        ((32768, 1, 512), (32768, 512)),
        ((8, 8, 1), (1, 1)),
    ],
)
def test_sizes_that_fit(sizes: tuple[int, int, int | None], expected: tuple[int, int]) -> None:
    assert batch_sizes(*sizes) == expected


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        (
            (768, 5, None),
            "train.global_batch is 768, which 5 ranks cannot share equally; "
            "train.global_batch=765 or 770 would do, or 3, 4, 6 or 8 ranks",
        ),
        (
            (3, 4, None),
            "train.global_batch is 3, which 4 ranks cannot share equally; "
            "train.global_batch=4 would do, or 1 or 3 ranks",
        ),
        (
            (768, 4, 100),
            "train.micro_batch is 100, which does not divide the 192 samples that each of 4 ranks has of "
            "train.global_batch=768; train.micro_batch=64, 96 or 192 would do",
        ),
        (
            (14, 2, 5),
            "train.micro_batch is 5, which does not divide the 7 samples that each of 2 ranks has of "
            "train.global_batch=14; train.micro_batch=1 or 7 would do",
        ),
    ],
)
def test_sizes_that_do_not(sizes: tuple[int, int, int | None], told: str) -> None:
    with pytest.raises(ValueError) as refused:
        batch_sizes(*sizes)
    assert str(refused.value) == told


def test_micro_batches_are_the_batch_in_order_and_no_copies() -> None:
    batch = Batch(
        images=torch.randint(0, 256, (7, 3, 4, 4), dtype=torch.uint8),
        tokens=torch.randint(0, 9, (7, 5)),
        caption_tokens=torch.randint(0, 9, (7, 6)),
        superpixels=torch.randint(0, 9, (7, 4)),
        captions=list("abcdefg"),
        positions=torch.arange(7) + 70,
    )
    parts = split_batch(batch, 3)
    assert [len(part) for part in parts] == [3, 3, 1]
    assert [caption for part in parts for caption in part.captions] == batch.captions
    for name in ("images", "tokens", "caption_tokens", "superpixels", "positions"):
        whole = getattr(batch, name)
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), whole)
        assert getattr(parts[0], name).untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
    assert split_batch(batch, 7) == [batch]
    assert split_batch(batch, 100) == [batch]
