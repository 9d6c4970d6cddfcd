from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segclip.kernels.patch_assignment import GumbelKey, patch_assignment
from segclip.keyed_random import Purpose, gumbel

TEMPERATURE = 0.9


def tensors(batch=2, centers=3, patches=7, width=5, dtype=torch.float64, seed=0):
    """Query, key, value and noise."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [
        (batch, centers, width),
        (batch, patches, width),
        (batch, patches, width),
        (batch, centers, patches),
    ]
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def derivative(function, at, step=1e-6):
    """Central differences of a function of one tensor: [outputs, inputs]."""
    rows = []
    for index in range(at.numel()):
        change = torch.zeros_like(at).flatten()
        change[index] = step
        change = change.view_as(at)
        rows.append((function(at + change) - function(at - change)).flatten() / (2 * step))
    return torch.stack(rows, dim=1)


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000), centers=st.sampled_from([1, 3, 4]), noisy=st.booleans())
def test_gradient_is_the_straight_through_formula(seed, centers, noisy) -> None:
    """d loss / d logits = (d loss / d hard at the one-hot) times (d softmax / d logits), both by differences."""
    query, key, value, noise = tensors(1, centers, 6, seed=seed)
    temperature = TEMPERATURE if noisy else 1.0
    added = noise if noisy else torch.zeros_like(noise)
    weight_r, weight_h = torch.randn_like(query), torch.randn_like(noise)

    def loss_of_hard(hard):
        # As the formula says, as a function of any real-valued assignment; counts up to one have no slope.
        count = hard.sum(dim=2, keepdim=True)
        count = torch.where(count > 1.5, count, torch.ones_like(count))
        return ((hard @ value / count) * weight_r).sum() + (hard**2 * weight_h).sum()

    logits = (query @ key.transpose(1, 2)).detach()
    hard = torch.nn.functional.one_hot((logits + added).argmax(dim=1), centers).transpose(1, 2).double()
    slope_hard = derivative(loss_of_hard, hard)
    slope_soft = derivative(lambda a: ((a + added) / temperature).softmax(dim=1), logits)
    expected = (slope_hard @ slope_soft).view_as(logits)

    query.requires_grad_(True)
    key.requires_grad_(True)
    out = patch_assignment(query, key, value, noise if noisy else None, temperature)
    assert torch.equal(out.hard_BGL.detach(), hard)
    loss = (out.regions_BGC * weight_r).sum() + (out.hard_BGL**2 * weight_h).sum()
    found_query, found_key = torch.autograd.grad(loss, [query, key])
    torch.testing.assert_close(found_query, expected @ key.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found_key, expected.transpose(1, 2) @ query.detach(), rtol=1e-5, atol=1e-6)


def test_gradient_of_the_values() -> None:
    query, key, value, noise = tensors()
    value.requires_grad_(True)
    torch.autograd.gradcheck(lambda v: patch_assignment(query, key, v, noise, TEMPERATURE).regions_BGC, value)


def test_gradient_of_the_logits() -> None:
    query, key, value, noise = tensors(patches=4)
    inputs = [tensor.requires_grad_(True) for tensor in (query, key)]
    torch.autograd.gradcheck(
        lambda q, k: patch_assignment(q, k, value, noise, TEMPERATURE).logits_BGL.tanh(), inputs
    )


def test_regions_are_means_and_empty_centers_are_zero() -> None:
    query = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]])
    key = torch.tensor([[[2.0, 0.0], [3.0, 1.0], [0.0, 4.0]]])
    value = torch.tensor([[[1.0, 1.0], [3.0, 5.0], [7.0, 7.0]]])
    out = patch_assignment(query, key, value)
    assert out.hard_BGL.tolist() == [[[1, 1, 0], [0, 0, 1], [0, 0, 0]]]
    assert out.regions_BGC.tolist() == [[[2, 3], [7, 7], [0, 0]]]
    torch.testing.assert_close(out.soft_BGL, (query @ key.transpose(1, 2)).softmax(dim=1))


def test_equal_logits_go_to_the_lowest_center() -> None:
    out = patch_assignment(torch.ones(1, 3, 2), torch.ones(1, 4, 2), torch.ones(1, 4, 2))
    assert out.hard_BGL[0].tolist() == [[1] * 4, [0] * 4, [0] * 4]


def test_a_key_draws_the_noise_it_names() -> None:
    query, key, value, _ = tensors(dtype=torch.float32)
    named = GumbelKey(3, Purpose.GUMBEL_MAIN, torch.tensor([8, 2]))
    noise = gumbel(3, Purpose.GUMBEL_MAIN, torch.tensor([8, 2]), 21).view(2, 3, 7)
    expected = patch_assignment(query, key, value, noise, TEMPERATURE)
    for one, other in zip(patch_assignment(query, key, value, named, TEMPERATURE), expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_types(dtype) -> None:
    query, key, value, noise = (tensor.to(dtype) for tensor in tensors())
    out = patch_assignment(query, key, value, noise.float(), TEMPERATURE)
    assert out.regions_BGC.dtype == dtype
    assert out.hard_BGL.dtype == out.logits_BGL.dtype == torch.float32
    assert ((out.hard_BGL == 0) | (out.hard_BGL == 1)).all()


@pytest.mark.parametrize(
    ("place", "shape", "message"),
    [
        (0, (3, 5), "query and key"),
        (1, (2, 7, 4), r"key of patch_assignment must be \[2, 7, 5\]"),
        (1, (1, 7, 5), "key of patch_assignment"),
        (2, (2, 6, 5), r"value of patch_assignment must be \[2, 7, 5\]"),
        (2, (2, 7, 4), r"value of patch_assignment must be \[2, 7, 5\], got \[2, 7, 4\]"),
        (0, (2, 65, 5), "query of patch_assignment must hold 1 to 64 centers, got 65"),
        (0, (2, 0, 5), "query of patch_assignment must hold 1 to 64 centers, got 0"),
        (1, (2, 0, 5), "must not be empty"),
        (3, (2, 3, 6), r"noise of patch_assignment must be \[2, 3, 7\], got \[2, 3, 6\]"),
    ],
)
def test_shapes_that_do_not_go_together(place, shape, message) -> None:
    arguments = tensors()
    arguments[place] = torch.zeros(shape, dtype=torch.float64)
    with pytest.raises(ValueError, match=message):
        patch_assignment(*arguments)


def test_positions_of_another_batch() -> None:
    query, key, value, _ = tensors()
    with pytest.raises(ValueError, match=r"positions of patch_assignment must be \[2\], got \[3\]"):
        patch_assignment(query, key, value, GumbelKey(0, 1, torch.zeros(3, dtype=torch.int64)))


@pytest.mark.parametrize("name", ["key", "value", "noise"])
def test_types_that_do_not_go_together(name) -> None:
    arguments = dict(zip(("query", "key", "value", "noise"), tensors(dtype=torch.float32), strict=True))
    arguments[name] = arguments[name].bfloat16()
    with pytest.raises(ValueError, match=f"{name} of patch_assignment must be torch.float32 on cpu"):
        patch_assignment(*arguments.values())


def test_positions_of_another_type() -> None:
    query, key, value, _ = tensors()
    with pytest.raises(ValueError, match=r"positions of patch_assignment must be torch.int64"):
        patch_assignment(query, key, value, GumbelKey(0, 1, torch.zeros(2, dtype=torch.int32)))


def test_devices_that_do_not_go_together() -> None:
    query, key, value, _ = tensors()
    with pytest.raises(ValueError, match=r"value of patch_assignment must be .* got .* on meta"):
        patch_assignment(query, key, value.to("meta"))


def test_whole_numbers_as_query() -> None:
    query, key, value, _ = (tensor.long() for tensor in tensors())
    with pytest.raises(ValueError, match=r"query of patch_assignment must be .* got torch.int64"):
        patch_assignment(query, key, value)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperature_that_is_not_above_zero(temperature) -> None:
    with pytest.raises(ValueError, match=f"temperature of patch_assignment .* got {temperature}"):
        patch_assignment(*tensors(), temperature)


@pytest.mark.parametrize("worst", [float("nan"), float("inf")])
def test_logits_that_are_not_finite(worst) -> None:
    query, key, value, _ = tensors(batch=3)
    key[1, 4, 2] = worst
    with pytest.raises(ValueError, match=r"query and key, are not finite in samples \[1\]"):
        patch_assignment(query, key, value)
