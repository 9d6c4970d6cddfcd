"""Rectangles of the contrastive loss, by the kernels and by plain torch, against the definition in float64."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from segclip.kernels.contrastive import contrastive_loss
from segclip.kernels.contrastive_tiles import TorchBlocks, pair_gradients, pair_terms

pytestmark = pytest.mark.usefixtures("kernels")


class Example(NamedTuple):
    """Rows and columns of a batch, and what the definition says about them in float64."""

    arguments: dict[str, Any]
    terms: tuple[Tensor, Tensor]
    finished: dict[str, Tensor]
    gradients: tuple[Tensor, Tensor, Tensor]


def example(
    batch: int,
    rows: slice,
    columns: slice,
    width: int,
    dtype: torch.dtype,
    device: str,
    exclude: bool = False,
    scale: float = 14.3,
) -> Example:
    generator = torch.Generator().manual_seed(batch * width)
    image, text = F.normalize(torch.randn((2, batch, width), generator=generator), dim=2).to(device, dtype)
    weights = torch.rand((2, batch), generator=generator).to(device)
    table = (torch.rand((batch, batch), generator=generator) < 0.3).to(device) if exclude else None

    cosines = image.double() @ text.double().T
    logits = (scale * cosines).requires_grad_(True)
    kept = logits
    if table is not None:
        kept = logits.masked_fill(table & ~torch.eye(batch, dtype=torch.bool, device=device), float("-inf"))
    own = logits.diagonal()
    row, column = kept.logsumexp(dim=1) - own, kept.logsumexp(dim=0) - own
    (slope,) = torch.autograd.grad((row * weights[0] + column * weights[1]).sum(), logits)
    slope = slope[rows, columns]
    own = own.detach()
    return Example(
        {
            "image_BE": image[rows],
            "text_NE": text[columns],
            "scale": torch.tensor(scale, device=device),
            "own_B": own[rows].float(),
            "own_N": own[columns].float(),
            "exclude_BN": None if table is None else table[rows, columns],
            "offset": rows.start - columns.start,
        },
        (
            (kept[rows, columns].logsumexp(dim=1) - own[rows]).detach(),
            (kept[rows, columns].logsumexp(dim=0) - own[columns]).detach(),
        ),
        {
            "row_B": row[rows].detach().float(),
            "column_N": column[columns].detach().float(),
            "grad_row_B": weights[0, rows],
            "grad_column_N": weights[1, columns],
        },
        (
            scale * slope @ text[columns].double(),
            scale * slope.T @ image[rows].double(),
            (slope * cosines[rows, columns]).sum(),
        ),
    )


def check(example: Example, kernels: bool) -> None:
    for found, expected in zip(pair_terms(**example.arguments, kernels=kernels), example.terms, strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=3e-6, atol=5e-6)
    found_gradients = pair_gradients(**example.arguments, kernels=kernels, **example.finished)
    # The kernels round the gradient of the logits to the type of the features (the interpreter cuts it off).
    half = kernels and example.arguments["image_BE"].dtype == torch.bfloat16
    for found, expected in zip(found_gradients, example.gradients, strict=True):
        assert found.dtype == torch.float32
        size = max(expected.abs().max().item(), 1.0)
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=(2**-7 if half else 5e-6) * size)


WHOLE = slice(0, 130)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("batch", "rows", "columns", "width", "exclude"),
    [
        (1, slice(0, 1), slice(0, 1), 64, False),
        (7, slice(0, 7), slice(0, 7), 80, True),
        (130, WHOLE, WHOLE, 80, False),
        (130, WHOLE, WHOLE, 192, True),
        (130, slice(40, 47), WHOLE, 512, False),
        (130, slice(60, 130), WHOLE, 64, True),
        (130, WHOLE, slice(100, 107), 64, True),
        (130, slice(0, 20), slice(90, 130), 64, False),
    ],
)
def test_rectangles(batch, rows, columns, width, exclude, dtype, device) -> None:
    some = example(batch, rows, columns, width, dtype, device, exclude)
    check(some, kernels=False)
    check(some, kernels=True)


def test_every_configuration(configured, device) -> None:
    import segclip.kernels.contrastive_triton as module

    some = example(130, slice(40, 130), WHOLE, 80, torch.float32, device, exclude=True)
    for _ in configured(module):
        check(some, kernels=True)


@pytest.mark.parametrize("kernels", [False, True])
def test_several_blocks(kernels, device, monkeypatch) -> None:
    from segclip.kernels.contrastive_triton import TritonBlocks

    for blocks in (TorchBlocks, TritonBlocks):
        monkeypatch.setattr(blocks, "forward_side", 48)
        monkeypatch.setattr(blocks, "backward_side", 70)
    check(example(130, slice(10, 130), WHOLE, 64, torch.float32, device, exclude=True), kernels)


def test_the_largest_temperature(device) -> None:
    some = example(40, slice(0, 40), slice(0, 40), 64, torch.float32, device, scale=100.0)
    check(some, kernels=True)


def loss_and_gradients(image: Tensor, text: Tensor, scale: Tensor, **options: Any) -> list[Tensor]:
    inputs = [tensor.detach().requires_grad_(True) for tensor in (image, text, scale)]
    loss = contrastive_loss(*inputs, **options)
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


def arguments(batch: int, width: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    image, text = torch.randn((2, batch, width), generator=torch.Generator().manual_seed(5)).to(device)
    return image, text, torch.tensor(14.3, device=device)


def test_the_dispatcher_gives_the_same_numbers(device, monkeypatch) -> None:
    some = arguments(37, 80, device)
    exclude = (torch.rand((37, 37), generator=torch.Generator().manual_seed(1)) < 0.3).to(device)
    by_kernels = loss_and_gradients(*some, exclude_BN=exclude)
    monkeypatch.setenv("SEGCLIP_KERNELS", "torch")
    for one, two in zip(by_kernels, loss_and_gradients(*some, exclude_BN=exclude), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=2e-6 * two.abs().max().item())


def test_memory_that_is_not_contiguous(device) -> None:
    image, text, scale = arguments(37, 80, device)
    exclude = (torch.rand((37, 37), generator=torch.Generator().manual_seed(1)) < 0.3).to(device)
    expected = loss_and_gradients(image, text, scale, exclude_BN=exclude)
    others = [tensor.T.contiguous().T for tensor in (image, exclude)]
    both = torch.stack([image, text], dim=1)
    for one, two in zip(
        loss_and_gradients(others[0], both[:, 1], scale, exclude_BN=others[1]), expected, strict=True
    ):
        torch.testing.assert_close(one, two)


def test_offsets_beyond_32_bits(device) -> None:
    """Rows further apart than 2**31 elements, in features and in the table."""
    some = example(3, slice(0, 3), slice(0, 3), 16, torch.bfloat16, device, exclude=True).arguments
    far = dict(some)
    for name in ("image_BE", "text_NE", "exclude_BN"):
        stride = 2**30 + 64
        torch.use_deterministic_algorithms(False)  # which would fill all of this memory
        storage = torch.empty(2 * stride + 16, dtype=some[name].dtype, device=device)
        torch.use_deterministic_algorithms(True)
        far[name] = storage.as_strided(some[name].shape, (stride, 1)).copy_(some[name])
    for one, two in zip(pair_terms(**far, kernels=True), pair_terms(**some, kernels=True), strict=True):
        assert torch.equal(one, two)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # opcheck's own doing
@pytest.mark.parametrize("kernels", [False, True])
def test_registration(kernels, device) -> None:
    some = example(7, slice(2, 5), slice(0, 7), 16, torch.float32, device, exclude=True)
    inputs = some.arguments | {"kernels": kernels}
    torch.library.opcheck(
        torch.ops.segclip.contrastive_backward.default, tuple((inputs | some.finished).values())
    )
    for name in ("image_BE", "text_NE", "scale"):
        inputs[name] = inputs[name].clone().requires_grad_(True)
    torch.library.opcheck(torch.ops.segclip.contrastive.default, tuple(inputs.values()))


def test_twice_the_same_bits(device) -> None:
    some = arguments(37, 80, device)
    first, second = (loss_and_gradients(*some) for _ in range(2))
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))


@pytest.mark.filterwarnings("ignore:.*NaN:RuntimeWarning")
def test_a_value_that_is_not_finite_is_seen(device) -> None:
    image, text, scale = arguments(7, 16, device)
    image[3, 2] = float("nan")
    with torch.no_grad(), pytest.raises(ValueError, match=r"image_BE must be finite, but 1 of its 112"):
        contrastive_loss(image, text, scale)
