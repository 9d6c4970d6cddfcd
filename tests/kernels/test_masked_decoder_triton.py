"""The kernels of ``unshuffle`` and ``masked_pixel_loss`` against their definitions in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from segclip.kernels.masked_decoder import (
    masked_pixel_loss,
    masked_pixel_loss_reference,
    unshuffle,
    unshuffle_reference,
)

pytestmark = pytest.mark.usefixtures("kernels")

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
DTYPES = [torch.float32, torch.bfloat16]


def tokens_example(
    batch: int, visible: int, places: int, width: int, dtype: torch.dtype, device: str
) -> list[Tensor]:
    """Tokens, restore, mask token, positions."""
    generator = torch.Generator().manual_seed(batch + visible + places + width)
    sizes = [(batch, visible, width), (width,), (places, width)]
    tokens, mask, positions = (torch.randn(s, generator=generator).to(device, dtype) for s in sizes)
    order = torch.stack([torch.randperm(places, generator=generator) for _ in range(batch)])
    return [tokens, order.to(device), mask, positions]


def unshuffled(function, tokens: Tensor, restore: Tensor, mask: Tensor, positions: Tensor) -> list[Tensor]:
    """Output and the gradients of tokens, mask token and positions."""
    inputs = [tensor.detach().requires_grad_(True) for tensor in (tokens, mask, positions)]
    out = function(inputs[0], restore, *inputs[1:])
    # Whole numbers: the same ones in every type.
    weight = torch.randint(-9, 9, out.shape, generator=torch.Generator().manual_seed(0)).to(out)
    return [out.detach(), *torch.autograd.grad(out, inputs, weight)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("batch", "visible", "places", "width"),
    [
        (1, 10, 37, 64),
        (3, 49, 50, 80),
        (2, 7, 197, 192),
        (1, 36, 36, 768),
        (1, 49, 196, 80),
        (1, 64, 256, 64),
        (3, 12, 49, 64),
    ],
)
def test_unshuffle(batch, visible, places, width, dtype, device) -> None:
    example = tokens_example(batch, visible, places, width, dtype, device)
    found = unshuffled(unshuffle, *example)
    tokens, restore, mask, positions = example
    expected = unshuffled(unshuffle_reference, tokens.double(), restore, mask.double(), positions.double())
    # A gather and one sum: the nearest number of the type, but for the mask token, which sums over places.
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(
            one, other.to(dtype), rtol=2e-6 if dtype == torch.float32 else 2**-7, atol=1e-5
        )
    assert torch.equal(found[1], expected[1].to(dtype))


def test_unshuffle_strides(device) -> None:
    tokens, restore, mask, positions = tokens_example(2, 10, 37, 64, torch.float32, device)
    strided = [
        tokens.transpose(0, 1).contiguous().transpose(0, 1),
        restore.T.contiguous().T,
        torch.stack([mask, mask], dim=1)[:, 0],
        positions.T.contiguous().T,
    ]
    assert not any(tensor.is_contiguous() for tensor in strided)
    found = unshuffled(unshuffle, *strided)
    expected = unshuffled(unshuffle, tokens, restore, mask, positions)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_unshuffle_offsets_beyond_32_bits(scattered, device) -> None:
    tokens, restore, mask, positions = tokens_example(2, 10, 37, 16, torch.bfloat16, device)
    found = unshuffled(unshuffle, scattered(tokens), restore, mask, positions)
    expected = unshuffled(unshuffle, tokens, restore, mask, positions)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def pixel_example(
    batch: int,
    grid: tuple[int, int],
    patch: int,
    masked: int,
    image: torch.dtype,
    dtype: torch.dtype,
    device: str,
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Prediction, images, masked patches, patch size."""
    generator = torch.Generator().manual_seed(batch + patch + masked)
    images = torch.randint(256, (batch, 3, grid[0] * patch, grid[1] * patch), generator=generator)
    pixels = images.to(torch.uint8) if image == torch.uint8 else (images / 128 - 1).to(image)
    prediction = torch.randn((batch, masked, 3 * patch**2), generator=generator).to(dtype)
    order = torch.stack([torch.randperm(grid[0] * grid[1], generator=generator) for _ in range(batch)])
    return prediction.to(device), pixels.to(device), order[:, :masked].to(device), patch


def pixel_loss(function, prediction: Tensor, *rest) -> tuple[Tensor, Tensor]:
    prediction = prediction.detach().requires_grad_(True)
    loss = function(prediction, *rest, MEAN, STD)
    return loss.detach(), torch.autograd.grad(loss * 3, prediction)[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("image", [torch.uint8, torch.float32])
@pytest.mark.parametrize(
    ("batch", "grid", "patch", "masked"),
    [
        (1, (6, 6), 16, 27),
        (3, (3, 5), 8, 11),
        (2, (7, 7), 6, 37),
        (1, (2, 2), 32, 1),
        (1, (14, 14), 4, 147),
        (1, (16, 16), 4, 192),
    ],
)
def test_pixel_loss(batch, grid, patch, masked, image, dtype, device) -> None:
    prediction, *rest = pixel_example(batch, grid, patch, masked, image, dtype, device)
    loss, gradient = pixel_loss(masked_pixel_loss, prediction, *rest)
    expected, expected_gradient = pixel_loss(masked_pixel_loss_reference, prediction.double(), *rest)
    assert loss.dtype == torch.float32
    assert gradient.dtype == dtype
    torch.testing.assert_close(loss.double(), expected, rtol=2e-6, atol=0)
    # Interpreted, Triton cuts float32 to bfloat16 instead of rounding.
    rounding = 2e-6 if dtype == torch.float32 else 2**-7
    size = expected_gradient.abs().max().item()
    # Divisions on a GPU err by two units in the last place, and what they yield may cancel.
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=rounding, atol=rounding * size / 4)


def test_every_configuration(configured, device) -> None:
    import segclip.kernels.masked_decoder_triton as module

    example = tokens_example(1, 10, 37, 80, torch.float32, device)
    expected = unshuffled(unshuffle_reference, *example)
    pixels = pixel_example(1, (3, 5), 8, 11, torch.uint8, torch.float32, device)
    expected += pixel_loss(masked_pixel_loss_reference, *pixels)
    for number in configured(module):
        found = [*unshuffled(unshuffle, *example), *pixel_loss(masked_pixel_loss, *pixels)]
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(
                one, other, rtol=1e-5, atol=1e-6 * other.abs().max().item(), msg=f"{number}: {{}}".format
            )


def test_pixel_loss_strides(device) -> None:
    prediction, images, masked, patch = pixel_example(2, (3, 4), 8, 7, torch.uint8, torch.float32, device)
    strided = [
        torch.cat([prediction, prediction], dim=2)[:, :, 192:],
        images.to(memory_format=torch.channels_last),
        torch.cat([masked, masked], dim=1)[:, 7:],
    ]
    assert not any(tensor.is_contiguous() for tensor in strided)
    found = pixel_loss(masked_pixel_loss, *strided, patch)
    expected = pixel_loss(masked_pixel_loss, prediction, images, masked, patch)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_pixel_loss_offsets_beyond_32_bits(scattered, device) -> None:
    """Channels more than 2**31 bytes apart."""
    prediction, images, masked, patch = pixel_example(2, (3, 4), 8, 7, torch.uint8, torch.float32, device)
    found = pixel_loss(masked_pixel_loss, prediction, scattered(images), masked, patch)
    expected = pixel_loss(masked_pixel_loss, prediction, images, masked, patch)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_twice_the_same_bits(device) -> None:
    """The mask token's gradient, above all: a sum over all samples and places."""
    example = tokens_example(3, 10, 70, 40, torch.float32, device)
    pixels = pixel_example(2, (3, 5), 4, 11, torch.uint8, torch.float32, device)
    first, second = (
        [*unshuffled(unshuffle, *example), *pixel_loss(masked_pixel_loss, *pixels)] for _ in range(2)
    )
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_an_index_out_of_range_shows(device) -> None:
    tokens, restore, mask, positions = tokens_example(2, 10, 37, 16, torch.float32, device)
    restore[0, 3], restore[1, 4] = 37, -1
    bad = unshuffle(tokens, restore, mask, positions).isnan().all(dim=2).nonzero().tolist()
    assert bad == [[0, 3], [1, 4]]
    prediction, images, masked, patch = pixel_example(1, (3, 4), 8, 7, torch.uint8, torch.float32, device)
    masked[0, 2] = 12
    assert masked_pixel_loss(prediction, images, masked, patch, MEAN, STD).isnan()


# opcheck looks at the gradients of the copies that it makes.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_registration(device) -> None:
    import segclip.kernels.masked_decoder_triton  # noqa: F401

    tokens, restore, mask, positions = tokens_example(2, 5, 12, 16, torch.float32, device)
    torch.library.opcheck(
        torch.ops.segclip.unshuffle.default,
        (tokens.requires_grad_(True), restore, mask.requires_grad_(True), positions),
    )
    grad = torch.ones(2, 12, 16, device=device)
    torch.library.opcheck(torch.ops.segclip.unshuffle_backward.default, (grad, restore, 5))
    prediction, *rest = pixel_example(1, (2, 3), 4, 3, torch.uint8, torch.float32, device)
    torch.library.opcheck(
        torch.ops.segclip.masked_pixel_loss.default, (prediction.requires_grad_(True), *rest, MEAN, STD)
    )
    torch.library.opcheck(
        torch.ops.segclip.masked_pixel_loss_backward.default,
        (torch.ones((), device=device), prediction.detach(), *rest, MEAN, STD),
    )
