"""The kernels of ``patch_assignment`` against its definition in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from segclip.kernels.patch_assignment import (
    GumbelKey,
    PatchAssignment,
    patch_assignment,
    patch_assignment_reference,
)
from segclip.keyed_random import Purpose, gumbel

pytestmark = pytest.mark.usefixtures("kernels")

TEMPERATURE = 0.9


def example(
    batch: int, centers: int, patches: int, width: int, dtype: torch.dtype, device: str
) -> list[Tensor]:
    """Query, key, value, float32 noise."""
    generator = torch.Generator().manual_seed(batch + centers + patches + width)
    sizes = [(batch, centers, width), (batch, patches, width), (batch, patches, width)]
    # Logits of size about one, so that the noise decides as much as they do.
    tensors = [torch.randn(size, generator=generator).to(device, dtype) for size in sizes]
    tensors[0] /= width**0.5
    return [*tensors, torch.randn((batch, centers, patches), generator=generator).to(device)]


def with_gradients(function: Any, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> list[Tensor]:
    """Regions, hard, logits, and the gradients of all inputs of a loss that uses all three."""
    inputs = [tensor.detach().requires_grad_(True) for tensor in (query, key, value)]
    out: PatchAssignment = function(*inputs, *rest)
    loss = torch.zeros((), dtype=torch.float64, device=query.device)
    for number, tensor in enumerate(out):
        # Whole numbers: the same ones in every type.
        generator = torch.Generator().manual_seed(number)
        loss = (
            loss
            + (torch.randint(-9, 9, tensor.shape, generator=generator).to(tensor) * tensor).double().sum()
        )
    return [*(tensor.detach() for tensor in out), *torch.autograd.grad(loss, inputs)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("batch", "centers", "patches", "width", "noisy"),
    [
        (1, 1, 36, 64, True),
        (3, 6, 49, 80, True),
        (1, 8, 196, 192, True),
        (1, 13, 197, 80, False),
        (1, 8, 256, 64, True),
        (1, 64, 36, 64, True),
        (1, 8, 48, 768, True),
    ],
)
def test_outputs_and_gradients(batch, centers, patches, width, noisy, dtype, device) -> None:
    *inputs, noise = example(batch, centers, patches, width, dtype, device)
    rest = (noise, TEMPERATURE) if noisy else (None, 1.0)
    found = with_gradients(patch_assignment, *inputs, *rest)
    wide = [tensor.double() for tensor in inputs]
    expected = with_gradients(patch_assignment_reference, *wide, noise.double() if noisy else None, rest[1])
    assert [tensor.dtype for tensor in found] == [dtype, torch.float32, torch.float32, dtype, dtype, dtype]
    assert torch.equal(found[1].double(), expected[1])
    names = ("regions", "hard", "logits", "grad query", "grad key", "grad value")
    for name, one, other in zip(names, found, expected, strict=True):
        rounding = 3e-6 if dtype == torch.float32 or name == "logits" else 2**-7
        torch.testing.assert_close(
            one.double(),
            other,
            rtol=rounding,
            atol=rounding * other.abs().max().item(),
            msg=lambda text, name=name: f"{name}: {text}",
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_configuration(configured, dtype, device) -> None:
    import segclip.kernels.patch_assignment_triton as module

    *inputs, noise = example(1, 6, 49, 80, dtype, device)
    wide = [tensor.double() for tensor in inputs]
    expected = with_gradients(patch_assignment_reference, *wide, noise.double(), TEMPERATURE)
    rounding = 3e-6 if dtype == torch.float32 else 2**-7
    for number in configured(module):
        found = with_gradients(patch_assignment, *inputs, noise, TEMPERATURE)
        for one, other in zip(found, expected, strict=True):
            size = other.abs().max().item()
            torch.testing.assert_close(
                one.double(), other, rtol=rounding, atol=rounding * size, msg=f"{number}: {{}}".format
            )


@pytest.mark.parametrize("used", ["regions_BGC", "hard_BGL", "logits_BGL"])
def test_gradient_of_one_output_alone(used, device) -> None:
    query, key, value, noise = example(2, 6, 49, 16, torch.float32, device)
    query.requires_grad_(True)
    found, expected = (
        torch.autograd.grad(
            (getattr(function(query, key, value, noise, TEMPERATURE), used) ** 2).sum(), query
        )[0]
        for function in (patch_assignment, patch_assignment_reference)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", [1, 2**33 + 5, -(2**40), 2**63 + 17])
def test_keyed_noise_is_that_of_the_library(seed, device) -> None:
    *inputs, _ = example(3, 6, 37, 16, torch.float32, device)
    positions = torch.tensor([5, 2**32 - 1, 2**40 + 3], device=device)
    named = GumbelKey(seed, Purpose.GUMBEL_MAIN, positions)
    noise = gumbel(seed, Purpose.GUMBEL_MAIN, positions, 6 * 37).view(3, 6, 37)
    found = with_gradients(patch_assignment, *inputs, named, TEMPERATURE)
    expected = with_gradients(patch_assignment, *inputs, noise, TEMPERATURE)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_noise_does_not_depend_on_the_split_of_the_batch(device) -> None:
    *inputs, _ = example(3, 8, 36, 16, torch.float32, device)
    positions = torch.tensor([8, 2, 5], device=device)
    whole = patch_assignment(*inputs, GumbelKey(3, Purpose.GUMBEL_MASKED, positions), TEMPERATURE)
    part = patch_assignment(
        *(tensor[1:2] for tensor in inputs), GumbelKey(3, Purpose.GUMBEL_MASKED, positions[1:2]), TEMPERATURE
    )
    for one, other in zip(part, whole, strict=True):
        assert torch.equal(one, other[1:2])


def test_twice_the_same_bits(device) -> None:
    *inputs, _ = example(2, 6, 70, 40, torch.bfloat16, device)
    key = GumbelKey(3, Purpose.GUMBEL_MAIN, torch.arange(2, device=device))
    first, second = (with_gradients(patch_assignment, *inputs, key, TEMPERATURE) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_strides(device) -> None:
    """Transposed, cut and expanded inputs give the bits of their copies."""
    query, key, value, noise = example(2, 6, 49, 64, torch.float32, device)
    query = query[:1].expand(2, -1, -1)
    strided = [
        query,
        key.transpose(1, 2).contiguous().transpose(1, 2),
        torch.cat([value, value], dim=2)[:, :, 64:],
        noise.transpose(0, 2).contiguous().transpose(0, 2),
    ]
    assert not any(tensor.is_contiguous() for tensor in strided)
    found = with_gradients(patch_assignment, *strided, TEMPERATURE)
    expected = with_gradients(patch_assignment, query.contiguous(), key, value, noise, TEMPERATURE)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_offsets_beyond_32_bits(scattered, device) -> None:
    query, key, value, noise = example(2, 3, 36, 16, torch.bfloat16, device)
    found = with_gradients(patch_assignment, query, scattered(key), scattered(value), noise, TEMPERATURE)
    expected = with_gradients(patch_assignment, query, key, value, noise, TEMPERATURE)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_ties_and_empty_centers(device) -> None:
    out = patch_assignment(
        torch.ones(1, 3, 16, device=device),
        torch.ones(1, 5, 16, device=device),
        torch.ones(1, 5, 16, device=device),
    )
    assert out.hard_BGL[0].tolist() == [[1] * 5, [0] * 5, [0] * 5]
    assert out.regions_BGC[0, :, 0].tolist() == [1, 0, 0]


# NumPy, which interprets the kernels, warns.
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_not_finite_spreads_as_in_the_definition(device) -> None:
    from segclip.kernels.patch_assignment_triton import patch_assignment_triton

    query, key, value, noise = example(2, 3, 36, 16, torch.float32, device)
    key[1, 4, 2] = float("nan")
    regions, hard, logits = patch_assignment_triton(query, key, value, noise, TEMPERATURE)
    expected = patch_assignment_reference(query, key, value, noise, TEMPERATURE)
    torch.testing.assert_close(PatchAssignment(regions, hard, logits), expected, equal_nan=True)
    assert regions[1].isnan().all()
    with torch.no_grad(), pytest.raises(ValueError, match=r"not finite in samples \[1\]"):
        patch_assignment(query, key, value, noise, TEMPERATURE)


# opcheck looks at the gradients of the copies that it makes.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("keyed", [True, False])
def test_registration(keyed, device) -> None:
    import segclip.kernels.patch_assignment_triton  # noqa: F401

    query, key, value, noise = example(2, 3, 36, 16, torch.float32, device)
    inputs = [tensor.requires_grad_(True) for tensor in (query, key, value)]
    positions = torch.tensor([3, 4], device=device)
    rest = (None, positions) if keyed else (noise, None)
    torch.library.opcheck(torch.ops.segclip.patch_assignment.default, (*inputs, *rest, 7, 1, TEMPERATURE))
    regions, hard, logits, winner, count = torch.ops.segclip.patch_assignment(
        *(tensor.detach() for tensor in inputs), *rest, 7, 1, TEMPERATURE
    )
    torch.library.opcheck(
        torch.ops.segclip.patch_assignment_backward.default,
        (
            regions, hard, logits, *(tensor.detach() for tensor in inputs), *rest,
            regions, logits, winner, count, 7, 1, TEMPERATURE,
        ),
    )  # fmt: skip
