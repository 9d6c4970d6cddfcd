from __future__ import annotations

import pytest
import torch

from segclip.kernels.patch_assignment import GumbelKey
from segclip.keyed_random import Purpose

POSITIONS = torch.tensor([3, 14, 15])


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model()


def passes(model, batch: int = 3):
    """Inputs of both passes."""
    generator = torch.Generator().manual_seed(0)
    patches = model.config.patches
    images = torch.randn(batch, 3, model.config.image_size, model.config.image_size, generator=generator)
    order = torch.rand(batch, patches, generator=generator).argsort(dim=1)
    noise = [
        GumbelKey(1, purpose, POSITIONS[:batch]) for purpose in (Purpose.GUMBEL_MAIN, Purpose.GUMBEL_MASKED)
    ]
    return images, noise[0], None, order, noise[1]


def flat(tree):
    """All tensors of nested tuples."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    return [tensor for part in tree or () if not isinstance(part, int) for tensor in flat(part)]


@pytest.mark.parametrize(("training", "backend"), [(True, "eager"), (False, "aot_eager")])
def test_compiles_without_graph_breaks_to_the_same_numbers(model, training, backend) -> None:
    inputs = passes(model) if training else passes(model)[:1]
    # A graph break is an error with fullgraph; these backends run what was captured without compiling it.
    compiled = torch.compile(model.vision, backend=backend, fullgraph=True)
    expected, got = flat(model.vision(*inputs)), flat(compiled(*inputs))
    assert len(expected) == len(got) > 10
    for one, other in zip(expected, got, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)
    for out in (expected, got):
        model.zero_grad()
        sum(tensor.float().square().mean() for tensor in out if tensor.requires_grad).backward()
        gradient = model.vision.patch_blocks[0].mlp.fc1.weight.grad.clone()
        if out is expected:
            reference = gradient
    torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-6)


def test_class_token_never_reaches_the_patches(model) -> None:
    images, *_ = passes(model)
    out = model.vision(images).main
    gradients = torch.autograd.grad(
        out.image_embed_BE.sum(), [model.vision.class_embedding, model.vision.positional_embedding]
    )
    assert not gradients[0].any()
    assert not gradients[1][0].any()
    assert gradients[1][1:].any(dim=1).all()


@pytest.mark.parametrize("size", [(24, 24), (12, 48), (36, 18), (6, 6), (48, 48)])
def test_any_grid(model, make_inputs, size) -> None:
    out = model.eval().encode_image(make_inputs(2, model.config, size).images)
    assert out.grid == (size[0] // 6, size[1] // 6)
    assert out.assignment.hard_BGL.shape == (2, 4, out.grid[0] * out.grid[1])
    assert torch.isfinite(out.image_embed_BE).all()


def test_masked_pass_sees_visible_patches_only(model) -> None:
    images, noise, kept, order, masked_noise = passes(model)
    before = model.vision(images, noise, kept, order, masked_noise).masked
    hidden_patches = order[:, model.config.visible_patches(model.config.patches) :]
    changed = images.clone()
    for sample, patches in enumerate(hidden_patches.tolist()):
        for patch in patches:
            row, column = divmod(patch, model.config.grid[1])
            changed[sample, :, 6 * row : 6 * row + 6, 6 * column : 6 * column + 6] += 5
    after = model.vision(changed, noise, kept, order, masked_noise).masked
    torch.testing.assert_close(after.hidden_BKC, before.hidden_BKC)
    assert before.hidden_BKC.shape[1] == model.config.visible_patches(16) == 3


def test_kept_patches_are_all_that_the_main_pass_sees(model) -> None:
    images, *_ = passes(model)
    kept = torch.tensor([[0, 1, 5, 9], [2, 3, 4, 15], [1, 6, 7, 8]])
    out = model.vision(images, None, kept).main
    assert out.mid_hidden_BLC.shape[1] == out.assignment.hard_BGL.shape[2] == 4
    changed = images.clone()
    changed[1, :, 18:24, 6:12] += 5  # patch 13 of the second image, which is not kept
    torch.testing.assert_close(model.vision(changed, None, kept).main.image_embed_BE, out.image_embed_BE)
    changed[1, :, 18:24, 18:24] += 5  # patch 15, which is
    assert not torch.allclose(model.vision(changed, None, kept).main.image_embed_BE, out.image_embed_BE)


def test_empty_centers_can_be_left_out_of_the_image_feature(tiny_model) -> None:
    with_empty = tiny_model(centers=20)
    without = tiny_model(centers=20, ignore_empty_centers=True)
    images, *_ = passes(with_empty)
    outs = [model.vision(images).main for model in (with_empty, without)]
    empty = outs[0].assignment.hard_BGL.sum(dim=2) == 0
    assert empty.any(dim=1).all()
    assert not empty.all(dim=1).any()
    torch.testing.assert_close(outs[1].center_tokens_BGC, outs[0].center_tokens_BGC)
    tokens = outs[0].center_tokens_BGC
    torch.testing.assert_close(outs[0].pooled_BC, tokens.amax(dim=1))
    expected = torch.stack([row[~none].amax(dim=0) for row, none in zip(tokens, empty, strict=True)])
    torch.testing.assert_close(outs[1].pooled_BC, expected)
    assert not torch.allclose(outs[0].pooled_BC, outs[1].pooled_BC)
