"""The kernels of ``superpixel_kl`` against its definition in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from segclip.kernels.superpixel_kl import superpixel_kl, superpixel_kl_reference

pytestmark = pytest.mark.usefixtures("kernels")


def example(
    batch: int, centers: int, patches: int, labels: int, dtype: torch.dtype, device: str
) -> tuple[Tensor, Tensor]:
    """A soft assignment, whose gradient is less degenerate than that of a one-hot one, and ids of wild values."""
    generator = torch.Generator().manual_seed(batch + centers + patches + labels)
    hard = torch.randn((batch, centers, patches), generator=generator).to(device, dtype)
    names = torch.randint(-(2**40), 2**40, (labels,), generator=generator)
    # What a kernel may load beyond the last patch.
    names[0] = 0
    return hard, names[torch.randint(labels, (batch, patches), generator=generator)].to(device)


def loss_and_gradient(function, hard: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    hard = hard.detach().requires_grad_(True)
    loss = function(hard, ids)
    return loss.detach(), torch.autograd.grad(loss * 3, hard)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("batch", "centers", "patches", "labels"),
    [(1, 1, 36, 5), (3, 6, 49, 49), (1, 8, 196, 64), (1, 8, 197, 1), (1, 13, 256, 256), (1, 64, 36, 2)],
)
def test_loss_and_gradient(batch, centers, patches, labels, dtype, device) -> None:
    hard, ids = example(batch, centers, patches, labels, dtype, device)
    loss, gradient = loss_and_gradient(superpixel_kl, hard, ids)
    expected, expected_gradient = loss_and_gradient(superpixel_kl_reference, hard.double(), ids)
    assert loss.dtype == torch.float32
    assert gradient.dtype == dtype
    torch.testing.assert_close(loss.double(), expected, rtol=2e-6, atol=1e-8)
    rounding = 2e-6 if dtype == torch.float32 else 2**-8
    size = expected_gradient.abs().max().item()
    torch.testing.assert_close(
        gradient.double(), expected_gradient, rtol=rounding, atol=rounding * size + 1e-9
    )


def test_every_configuration(configured, device) -> None:
    import segclip.kernels.superpixel_kl_triton as module

    hard, ids = example(1, 6, 197, 20, torch.float32, device)
    expected = loss_and_gradient(superpixel_kl_reference, hard.double(), ids)
    for number in configured(module):
        for one, other in zip(loss_and_gradient(superpixel_kl, hard, ids), expected, strict=True):
            torch.testing.assert_close(
                one.double(),
                other,
                rtol=2e-6,
                atol=2e-6 * other.abs().max().item(),
                msg=f"{number}: {{}}".format,
            )


def test_ids_of_other_types_and_strides(device) -> None:
    hard, ids = example(2, 6, 49, 7, torch.float32, device)
    expected = loss_and_gradient(superpixel_kl, hard, ids)
    ids = ids.unique(return_inverse=True)[1]
    other = hard.transpose(1, 2).contiguous().transpose(1, 2), ids.to(torch.uint8).repeat(1, 2)[:, :49]
    assert not other[0].is_contiguous()
    assert not other[1].is_contiguous()
    for one, two in zip(loss_and_gradient(superpixel_kl, *other), expected, strict=True):
        assert torch.equal(one, two)


def test_offsets_beyond_32_bits(scattered, device) -> None:
    hard, ids = example(2, 3, 36, 4, torch.bfloat16, device)
    far = scattered(hard.transpose(1, 2)).transpose(1, 2)
    for one, two in zip(
        loss_and_gradient(superpixel_kl, far, ids), loss_and_gradient(superpixel_kl, hard, ids), strict=True
    ):
        assert torch.equal(one, two)


# opcheck looks at the gradients of the copies that it makes.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_registration(device) -> None:
    import segclip.kernels.superpixel_kl_triton  # noqa: F401

    hard, ids = example(2, 3, 36, 4, torch.float32, device)
    operation = torch.ops.segclip.superpixel_kl.default
    torch.library.opcheck(operation, (hard.requires_grad_(True), ids))
    torch.library.opcheck(
        torch.ops.segclip.superpixel_kl_backward.default, (torch.ones((), device=device), hard.detach(), ids)
    )


def test_twice_the_same_bits(device) -> None:
    arguments = example(2, 8, 49, 9, torch.float32, device)
    first, second = (loss_and_gradient(superpixel_kl, *arguments) for _ in range(2))
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))
