from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from segclip.kernels.contrastive import contrastive_loss, contrastive_loss_reference
from segclip.kernels.contrastive_tiles import TorchBlocks


def features(batch=4, width=6, seed=0, dtype=torch.float64):
    """Image and text features and a temperature."""
    generator = torch.Generator().manual_seed(seed)
    image, text = (torch.randn(batch, width, generator=generator, dtype=dtype) for _ in range(2))
    return image, text, torch.tensor(14.0, dtype=dtype)


def test_equals_the_written_out_form() -> None:
    image, text, scale = features()
    cosine = torch.stack([torch.stack([F.cosine_similarity(i, t, dim=0) for t in text]) for i in image])
    logits = scale * cosine
    own = torch.arange(4)
    expected = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    torch.testing.assert_close(contrastive_loss(image, text, scale), expected)


def test_gradients_by_differences() -> None:
    inputs = [tensor.requires_grad_(True) for tensor in features()]
    torch.autograd.gradcheck(contrastive_loss, inputs)


def test_lengths_of_features_do_not_matter() -> None:
    image, text, scale = features()
    torch.testing.assert_close(
        contrastive_loss(image * 3, text * 0.1, scale), contrastive_loss(image, text, scale)
    )


def test_both_directions_count() -> None:
    image, text, scale = features()
    torch.testing.assert_close(contrastive_loss(text, image, scale), contrastive_loss(image, text, scale))


def test_bfloat16_features_give_a_float32_loss() -> None:
    image, text, scale = features()
    loss = contrastive_loss(image.bfloat16(), text.bfloat16(), scale.float())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), contrastive_loss(image, text, scale), rtol=0.05, atol=0.05)


def test_a_pair_left_out_has_no_influence() -> None:
    """Image 0 and text 2 do not find each other; both still find everything else."""
    image, text, scale = features()
    exclude = torch.zeros(4, 4, dtype=torch.bool)
    exclude[0, 2] = True
    found = contrastive_loss(image, text, scale, exclude_BN=exclude)
    logits = scale * F.normalize(image, dim=1) @ F.normalize(text, dim=1).T
    terms = []
    for own in range(4):
        texts = [column for column in range(4) if not exclude[own, column]]
        images = [row for row in range(4) if not exclude[row, own]]
        terms.append(-logits[own, texts].log_softmax(dim=0)[texts.index(own)])
        terms.append(-logits[images, own].log_softmax(dim=0)[images.index(own)])
    torch.testing.assert_close(found, torch.stack(terms).mean())


def test_ones_own_pair_is_never_left_out() -> None:
    image, text, scale = features()
    everything = torch.ones(4, 4, dtype=torch.bool)
    # Only the own pair is left to find.
    assert abs(contrastive_loss(image, text, scale, exclude_BN=everything)) < 1e-14
    diagonal = torch.eye(4, dtype=torch.bool)
    plain = contrastive_loss(image, text, scale)
    torch.testing.assert_close(contrastive_loss(image, text, scale, exclude_BN=diagonal), plain)


def test_gradients_by_differences_with_pairs_left_out() -> None:
    inputs = [tensor.requires_grad_(True) for tensor in features()]
    exclude = torch.rand(4, 4, generator=torch.Generator().manual_seed(1)) < 0.4
    torch.autograd.gradcheck(partial(contrastive_loss, exclude_BN=exclude), inputs)


def test_gradients_of_the_reference_by_differences() -> None:
    inputs = [tensor.requires_grad_(True) for tensor in features()]
    exclude = torch.rand(4, 4, generator=torch.Generator().manual_seed(1)) < 0.4
    torch.autograd.gradcheck(partial(contrastive_loss_reference, exclude_BN=exclude), inputs)


@pytest.mark.parametrize("side", [1, 3, 1024])
def test_blocks_make_no_difference(side, monkeypatch) -> None:
    """Loss and all gradients, at the largest temperature, where differences of logits would lose their last digits."""
    monkeypatch.setattr(TorchBlocks, "forward_side", side)
    monkeypatch.setattr(TorchBlocks, "backward_side", side + 1)
    exclude = torch.rand(7, 7, generator=torch.Generator().manual_seed(1)) < 0.3
    results = []
    for function in (contrastive_loss, contrastive_loss_reference):
        image, text, _ = features(batch=7, width=80)
        inputs = [tensor.requires_grad_(True) for tensor in (image, text, torch.tensor(100.0).double())]
        loss = function(*inputs, exclude_BN=exclude)
        results.append([loss, *torch.autograd.grad(loss, inputs)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


def test_a_group_of_one(tmp_path) -> None:
    image, text, scale = features()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        found = contrastive_loss(image, text, scale, group=dist.group.WORLD)
    finally:
        dist.destroy_process_group()
    assert torch.equal(found, contrastive_loss(image, text, scale))


@pytest.mark.parametrize(
    ("image", "text", "exclude", "message"),
    [
        ((4, 6), (3, 6), None, r"image_BE and text_BE .* got \[4, 6\] and \[3, 6\]"),
        ((4,), (4,), None, r"\[B, E\]"),
        ((0, 6), (0, 6), None, "at least one pair"),
        ((4, 6), (4, 6), torch.zeros(4, 4), r"exclude_BN must be bool \[4, 4\], got torch.float32"),
        ((4, 6), (4, 6), torch.zeros(4, 5, dtype=torch.bool), r"got torch.bool \[4, 5\]"),
    ],
)
def test_bad_input(image, text, exclude, message) -> None:
    with pytest.raises(ValueError, match=message):
        contrastive_loss(torch.zeros(image), torch.zeros(text), torch.ones(()), exclude_BN=exclude)


def test_types_and_devices_that_differ() -> None:
    image, text, scale = features()
    with pytest.raises(ValueError, match=r"image_BE and text_BE .* got torch.float64 and torch.float32"):
        contrastive_loss(image, text.float(), scale)
    with pytest.raises(ValueError, match=r"one floating-point type, got torch.int64"):
        contrastive_loss(image.long(), text.long(), scale)
    with pytest.raises(ValueError, match=r"text_BE must be on cpu like image_BE, got meta"):
        contrastive_loss(image, text.to("meta"), scale)
    with pytest.raises(ValueError, match=r"logit_scale must be a scalar, got \[2\]"):
        contrastive_loss(image, text, scale.repeat(2))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["image_BE", "text_BE", "logit_scale"])
def test_values_that_are_not_finite(name, value) -> None:
    inputs = dict(zip(("image_BE", "text_BE", "logit_scale"), features(), strict=True))
    inputs[name].view(-1)[0] = value
    with pytest.raises(ValueError, match=rf"{name} must be finite, but 1 of its"):
        contrastive_loss(**inputs)
