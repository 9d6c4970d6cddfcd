from __future__ import annotations

import pytest
import torch

from segclip.kernels.masked_decoder import masked_pixel_loss, patch_pixels, unshuffle

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def test_unshuffle_puts_tokens_back() -> None:
    tokens = torch.arange(1.0, 4.0)[None, :, None].expand(1, 3, 2)
    order = torch.tensor([[4, 0, 2, 1, 3]])
    out = unshuffle(
        tokens, order.argsort(dim=1), torch.tensor([-1.0, -1.0]), torch.arange(10.0).view(5, 2) * 10
    )
    # Places 4, 0 and 2 hold tokens 1, 2 and 3; the others the mask token.
    assert (out[0, :, 0] - torch.arange(5) * 20).tolist() == [2, -1, 3, -1, 1]


def test_unshuffle_gradients() -> None:
    restore = torch.stack([torch.randperm(6) for _ in range(2)])
    inputs = [
        torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 4, 3), (3,), (6, 3))
    ]
    torch.autograd.gradcheck(lambda tokens, mask, places: unshuffle(tokens, restore, mask, places), inputs)


def test_pixels_of_a_patch_are_in_row_column_channel_order() -> None:
    images = torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6)
    patches = patch_pixels(images, 2)
    assert patches.shape == (2, 6, 12)
    for row in range(2):
        for column in range(3):
            cut = images[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            assert torch.equal(patches[:, 3 * row + column], cut.permute(0, 2, 3, 1).reshape(2, 12))


@pytest.mark.parametrize("as_bytes", [True, False])
def test_loss_is_the_mean_over_masked_pixels(as_bytes) -> None:
    generator = torch.Generator().manual_seed(0)
    stored = torch.randint(256, (2, 3, 4, 6), generator=generator, dtype=torch.uint8)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    normalised = (stored / 255 - mean) / std
    masked = torch.tensor([[0, 5, 2], [3, 1, 4]])
    prediction = torch.randn(2, 3, 12, generator=generator)
    target = patch_pixels(normalised, 2)
    expected = torch.stack(
        [
            (prediction[b, m] - target[b, place]).square().mean()
            for b in range(2)
            for m, place in enumerate(masked[b])
        ]
    ).mean()
    got = masked_pixel_loss(prediction, stored if as_bytes else normalised, masked, 2, MEAN, STD)
    torch.testing.assert_close(got, expected)


def test_bfloat16_prediction_gives_a_float32_loss() -> None:
    images = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    loss = masked_pixel_loss(
        torch.zeros(1, 1, 12, dtype=torch.bfloat16),
        images,
        torch.zeros(1, 1, dtype=torch.int64),
        2,
        MEAN,
        STD,
    )
    assert loss.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"restore": torch.zeros(6, dtype=torch.int64)}, r"restore of unshuffle must be \[2, N\]"),
        ({"mask": torch.zeros(4)}, r"mask token of unshuffle must be \[3\]"),
        ({"places": torch.zeros(5, 3)}, r"positions of unshuffle must be \[6, 3\]"),
        ({"restore": torch.zeros(2, 3, dtype=torch.int64)}, "place for each of 4 tokens, got 3"),
        ({"restore": torch.zeros(2, 6, dtype=torch.int32)}, "restore of unshuffle must be torch.int64"),
        ({"mask": torch.zeros(3, dtype=torch.float64)}, "mask token of unshuffle must be torch.float32"),
        ({"places": torch.zeros(6, 3, device="meta")}, "positions of unshuffle must be .* got .* on meta"),
    ],
)
def test_unshuffle_refuses(change, message) -> None:
    arguments = {
        "restore": torch.zeros(2, 6, dtype=torch.int64),
        "mask": torch.zeros(3),
        "places": torch.zeros(6, 3),
    }
    with pytest.raises(ValueError, match=message):
        unshuffle(torch.zeros(2, 4, 3), *{**arguments, **change}.values())


def test_whole_numbers_are_refused() -> None:
    places = torch.zeros(2, 6, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"tokens of unshuffle must be .* got torch.int64"):
        unshuffle(torch.zeros(2, 4, 3).long(), places, torch.zeros(3).long(), torch.zeros(6, 3).long())
    with pytest.raises(ValueError, match=r"pixel prediction must be .* got torch.int64"):
        masked_pixel_loss(torch.zeros(2, 6, 12).long(), torch.zeros(2, 3, 4, 6), places, 2, MEAN, STD)


def test_patch_size_of_nothing() -> None:
    places = torch.zeros(2, 6, dtype=torch.int64)
    with pytest.raises(ValueError, match="patch size of masked_pixel_loss must be at least 1, got 0"):
        masked_pixel_loss(torch.zeros(2, 6, 12), torch.zeros(2, 3, 4, 6), places, 0, MEAN, STD)


@pytest.mark.parametrize(
    ("prediction", "masked", "size", "message"),
    [
        ((2, 3, 12), (2, 3), (4, 5), "4x5 is not divisible"),
        ((2, 3, 12), (1, 3), (4, 6), r"masked patches must be \[2, M\]"),
        ((2, 4, 12), (2, 3), (4, 6), r"pixel prediction must be \[2, 3, 12\], got \[2, 4, 12\]"),
    ],
)
def test_pixel_loss_shapes(prediction, masked, size, message) -> None:
    with pytest.raises(ValueError, match=message):
        masked_pixel_loss(
            torch.zeros(prediction),
            torch.zeros(2, 3, *size),
            torch.zeros(masked, dtype=torch.int64),
            2,
            MEAN,
            STD,
        )


@pytest.mark.parametrize(
    ("images", "masked", "message"),
    [
        (torch.zeros(2, 1, 4, 6), torch.zeros(2, 3, dtype=torch.int64), r"must be \[B, 3, H, W\]"),
        (
            torch.zeros(2, 3, 4, 6, dtype=torch.int32),
            torch.zeros(2, 3, dtype=torch.int64),
            "uint8 .* or float .* got torch.int32",
        ),
        (torch.zeros(2, 3, 4, 6), torch.zeros(2, 3), "masked patches must be torch.int64"),
    ],
)
def test_pixel_loss_refuses(images, masked, message) -> None:
    with pytest.raises(ValueError, match=message):
        masked_pixel_loss(torch.zeros(2, 3, 12), images, masked, 2, MEAN, STD)


def test_pixel_loss_gradient() -> None:
    images = torch.rand(2, 3, 4, 6, dtype=torch.float64)
    masked = torch.tensor([[0, 5], [3, 1]])
    prediction = torch.randn(2, 2, 12, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda p: masked_pixel_loss(p, images, masked, 2, MEAN, STD), prediction)
