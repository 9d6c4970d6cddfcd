from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segclip.kernels.contrastive import contrastive_loss
from segclip.models.noise import InjectedNoise, KeyedNoise
from segclip.models.segclip import LARGEST_LOGIT_SCALE, SegCLIP
from segclip.models.text_reconstruction import valid_words


def total_loss(out):
    """All parts with weight 1, in one process."""
    contrastive = contrastive_loss(out.image_embed_BE, out.text_embed_BE, out.logit_scale)
    return contrastive + out.loss_superpixel + out.loss_reconstruction + out.loss_text_reconstruction


def gradients(model, inputs, **switches):
    """Loss and gradients of a training pass."""
    model.zero_grad()
    loss = total_loss(model(*inputs, **switches))
    loss.backward()
    return loss.detach(), {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model()


# ------------------------------------------------------------------------------------------- properties


@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(5)), size=st.sampled_from([(24, 24), (12, 30)]), training=st.booleans())
def test_permuting_the_batch_permutes_the_results(model, make_inputs, order, size, training) -> None:
    inputs, rows = make_inputs(5, model.config, size), torch.tensor(order)
    picked = inputs.rows(rows)
    with torch.no_grad():
        out = model.encode_image(inputs.images, inputs.noise if training else None)
        permuted = model.encode_image(picked.images, picked.noise if training else None)
        torch.testing.assert_close(permuted.image_embed_BE, out.image_embed_BE[rows], rtol=1e-5, atol=1e-5)
        assert torch.equal(permuted.assignment.hard_BGL, out.assignment.hard_BGL[rows])
        text, permuted_text = model.encode_text(inputs.tokens), model.encode_text(picked.tokens)
        torch.testing.assert_close(permuted_text, text[rows], rtol=1e-5, atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(row=st.integers(0, 4), training=st.booleans())
def test_an_image_does_not_see_its_neighbours_in_the_batch(model, make_inputs, row, training) -> None:
    inputs = make_inputs(5, model.config)
    alone = inputs.rows(torch.tensor([row]))
    with torch.no_grad():
        together = model.encode_image(inputs.images, inputs.noise if training else None)
        single = model.encode_image(alone.images, alone.noise if training else None)
    for name in ("image_embed_BE", "center_embed_BGE", "region_tokens_BGC", "mid_hidden_BLC"):
        expected = getattr(single, name)
        torch.testing.assert_close(getattr(together, name)[row : row + 1], expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**16), training=st.booleans())
def test_every_patch_belongs_to_exactly_one_center(model, make_inputs, seed, training) -> None:
    inputs = make_inputs(3, model.config, seed=seed)
    with torch.no_grad():
        assignment = model.encode_image(inputs.images, inputs.noise if training else None).assignment
    hard = assignment.hard_BGL
    assert ((hard == 0) | (hard == 1)).all()
    assert (hard.sum(dim=1) == 1).all()
    torch.testing.assert_close(assignment.soft_BGL.sum(dim=1), torch.ones(3, model.config.patches))


def test_losses_of_a_batch_are_the_mean_over_its_samples(model, make_inputs) -> None:
    inputs = make_inputs(4, model.config)
    with torch.no_grad():
        whole = model(*inputs)
        parts = [model(*inputs.rows(torch.tensor([row]))) for row in range(4)]
    for name in ("loss_superpixel", "loss_reconstruction"):
        mean = torch.stack([getattr(part, name) for part in parts]).mean()
        torch.testing.assert_close(getattr(whole, name), mean, rtol=1e-5, atol=1e-6)


def test_evaluation_and_training_differ_by_noise_alone(model, make_inputs) -> None:
    inputs = make_inputs(3, model.config)
    no_noise = InjectedNoise(torch.zeros(3, model.config.centers, model.config.patches))
    with torch.no_grad():
        quiet = model.encode_image(inputs.images)
        assert torch.equal(model.encode_image(inputs.images, no_noise).image_embed_BE, quiet.image_embed_BE)
        noisy = model.encode_image(inputs.images, inputs.noise)
    assert not torch.equal(noisy.assignment.hard_BGL, quiet.assignment.hard_BGL)
    # What segmentation shows has no noise in it.
    assert torch.equal(noisy.assignment.soft_BGL, quiet.assignment.soft_BGL)


# ------------------------------------------------------------------------------------------- inputs and switches


def test_bytes_are_normalised(model, make_inputs) -> None:
    images = make_inputs(2, model.config).images
    mean, std = (torch.tensor(x)[:, None, None] for x in (model.config.image_mean, model.config.image_std))
    normalised = (images / 255 - mean) / std
    torch.testing.assert_close(model.normalise(images), normalised)
    assert model.normalise(normalised) is normalised
    with torch.no_grad():
        a, b = (model.encode_image(x).image_embed_BE for x in (images, normalised))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_normalisation_follows_the_device_and_keeps_its_precision(tiny_config, model, make_inputs) -> None:
    images = make_inputs(2, model.config).images
    expected = model.normalise(images)
    buffers = ("_pixel_factor", "_pixel_shift")
    # No checkpoint holds them, so none needs to.
    assert set(buffers) <= dict(model.named_buffers()).keys()
    assert not set(buffers) & model.state_dict().keys()

    def precise(network) -> bool:
        return all(torch.equal(getattr(network, name), getattr(model, name)) for name in buffers)

    half = SegCLIP(tiny_config()).to(torch.bfloat16)
    assert precise(half)
    assert torch.equal(half.normalise(images), expected.bfloat16())
    assert torch.equal(half.float().normalise(images), expected)
    assert precise(copy.deepcopy(half).double())

    away = SegCLIP(tiny_config()).to("meta")
    assert {getattr(away, name).device.type for name in buffers} == {"meta"}
    # Memory that nobody has written yet: what the configuration tells is there all the same.
    assert precise(away.to_empty(device="cpu"))
    with torch.device("meta"):
        unborn = SegCLIP(tiny_config())
    assert precise(unborn.to_empty(device="cpu"))


def test_bytes_and_floats_give_one_reconstruction_loss(model, make_inputs) -> None:
    inputs = make_inputs(2, model.config)
    with torch.no_grad():
        bytes_loss = model(*inputs).loss_reconstruction
        float_loss = model(*inputs._replace(images=model.normalise(inputs.images))).loss_reconstruction
    torch.testing.assert_close(bytes_loss, float_loss, rtol=1e-5, atol=1e-6)


def test_losses_switched_off_are_zero_and_run_nothing(model, make_inputs) -> None:
    inputs = make_inputs(2, model.config)
    called = []
    handles = [
        module.register_forward_pre_hook(lambda *_: called.append(1))
        for module in (model.decoder, model.vision.expansion)
    ]
    out = model(inputs.images, inputs.tokens, with_superpixel=False, with_reconstruction=False)
    for handle in handles:
        handle.remove()
    assert not called
    assert out.masked is None
    for loss in (out.loss_superpixel, out.loss_reconstruction, out.loss_text_reconstruction):
        assert loss == 0
        assert not loss.requires_grad


def test_gradients_reach_every_parameter_that_trains(tiny_model, make_inputs) -> None:
    model = tiny_model(text_reconstruction=True)
    _, found = gradients(model, make_inputs(6, model.config), with_text_reconstruction=True)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(found) == trained
    # The class token is dropped before the first block.
    assert {name for name, gradient in found.items() if not gradient.any()} == {"vision.class_embedding"}


def test_autocast(tiny_model, make_inputs) -> None:
    """float32 parameters under ``torch.autocast``, as in the loop one would write."""
    model = tiny_model(text_reconstruction=True)
    inputs = make_inputs(6, model.config)
    exact, exact_gradients = gradients(model, inputs, with_text_reconstruction=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss, found = gradients(model, inputs, with_text_reconstruction=True)
    assert loss != exact
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)
    assert all(each.dtype == torch.float32 for each in found.values())
    difference = sum((found[name] - exact_gradients[name]).square().sum() for name in exact_gradients)
    size = sum(each.square().sum() for each in exact_gradients.values())
    assert (difference / size).sqrt() < 0.1


def test_temperature_is_clamped_in_the_forward_pass_only(tiny_model, make_inputs) -> None:
    model = tiny_model()
    inputs = make_inputs(2, model.config)
    assert model(*inputs).logit_scale.item() == pytest.approx(1 / 0.07)
    with torch.no_grad():
        model.logit_scale.fill_(5.0)
    out = model(*inputs)
    assert out.logit_scale == LARGEST_LOGIT_SCALE
    assert model.logit_scale == 5


def test_words_shorter_than_the_context(model, make_inputs) -> None:
    tokens = make_inputs(4, model.config).tokens
    longest = int(tokens.argmax(dim=1).max()) + 1
    with torch.no_grad():
        whole, cut = model.encode_text(tokens), model.encode_text(tokens[:, :longest])
    torch.testing.assert_close(cut, whole, rtol=1e-5, atol=1e-6)


def test_what_follows_the_end_of_a_text_does_not_matter(model, make_inputs) -> None:
    tokens = make_inputs(4, model.config).tokens
    filled = torch.where(tokens == 0, torch.randint(1, 60, tokens.shape), tokens)
    with torch.no_grad():
        torch.testing.assert_close(model.encode_text(filled), model.encode_text(tokens), rtol=1e-5, atol=1e-6)


def test_a_text_ends_for_the_network_at_its_first_end_token(model, make_inputs) -> None:
    tokens = make_inputs(4, model.config).tokens
    end = model.config.vocab_size - 1
    again = tokens.clone()
    again[:, -1] = end
    with torch.no_grad():
        torch.testing.assert_close(model.encode_text(again), model.encode_text(tokens), rtol=1e-5, atol=1e-6)
    assert valid_words(again).all()


# ------------------------------------------------------------------------------------------- ways to train


@pytest.mark.parametrize(
    "changes", [{}, {"drop_path": 0.5, "patch_dropout": 0.25, "text_reconstruction": True}]
)
def test_activation_checkpointing_changes_no_number(tiny_model, make_inputs, changes) -> None:
    results = []
    for recompute in (False, True):
        model = tiny_model(activation_checkpointing=recompute, **changes).train()
        results.append(
            gradients(
                model, make_inputs(4, model.config), with_text_reconstruction=model.config.text_reconstruction
            )
        )
    (loss, plain), (loss_again, recomputed) = results
    assert torch.equal(loss, loss_again)
    assert plain.keys() == recomputed.keys()
    for name, gradient in plain.items():
        assert torch.equal(gradient, recomputed[name]), name


def test_activation_checkpointing_keeps_less(tiny_model, make_inputs) -> None:
    kept = []
    for recompute in (False, True):
        model = tiny_model(activation_checkpointing=recompute, vision_layers=6, first_stage_layers=5)
        seen: dict[int, int] = {}

        def pack(tensor, seen=seen):
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = model(*make_inputs(4, model.config))
        kept.append(sum(seen.values()) - sum(p.numel() * 4 for p in model.parameters()))
        del out
    assert kept[1] < 0.6 * kept[0]


def test_patch_dropout_acts_in_training_only(tiny_model, make_inputs) -> None:
    model = tiny_model(patch_dropout=0.5).train()
    inputs = make_inputs(3, model.config)
    out = model(*inputs)
    assert out.hard_BGL.shape[2] == 8
    kept = out.vision.kept_BL
    assert torch.equal(kept, kept.sort(dim=1).values)
    assert torch.equal(model(*inputs).vision.kept_BL, kept)
    # Keyed by the sample, whatever its batch.
    alone = model(*inputs.rows(torch.tensor([2])))
    assert torch.equal(alone.vision.kept_BL[0], kept[2])
    # The second pass masks all patches as ever.
    assert out.masked.order_BL.shape[1] == 16
    assert model.eval()(*inputs).hard_BGL.shape[2] == 16
    assert model.train()(*inputs[:3], with_reconstruction=False).hard_BGL.shape[2] == 16


def test_superpixels_follow_their_patches_under_patch_dropout(tiny_model, make_inputs) -> None:
    model = tiny_model(patch_dropout=0.5).train()
    inputs = make_inputs(3, model.config)
    out = model(*inputs)
    from segclip.kernels.superpixel_kl import superpixel_kl

    expected = superpixel_kl(out.hard_BGL, inputs.superpixels.gather(1, out.vision.kept_BL))
    assert torch.equal(out.loss_superpixel, expected)


def test_drop_path(tiny_model, make_inputs) -> None:
    plain, dropping = tiny_model(), tiny_model(drop_path=0.4).train()
    inputs = make_inputs(3, plain.config)
    assert torch.equal(dropping.eval()(*inputs).image_embed_BE, plain(*inputs).image_embed_BE)
    dropping.train()
    found = dropping(*inputs).image_embed_BE
    assert not torch.allclose(found, plain(*inputs).image_embed_BE)
    assert torch.equal(dropping(*inputs).image_embed_BE, found)
    torch.testing.assert_close(
        dropping(*inputs.rows(torch.tensor([1]))).image_embed_BE[0], found[1], rtol=1e-4, atol=1e-5
    )


def test_drop_path_rates_and_factors(tiny_model) -> None:
    model = tiny_model(drop_path=0.4).train()
    branches = model.vision.branches
    assert branches == 4 * model.config.vision_layers
    rates = model._drop_rates(torch.zeros(1)).tolist()
    assert rates == pytest.approx([0.0, 0.0, 0.2, 0.2, 0.4, 0.4] * 2)
    kept, factors = model._dropped(KeyedNoise(0, torch.arange(4000)), 16)
    assert kept is None
    # Dropping keeps the mean: a branch that stays counts 1 / (1 - rate).
    torch.testing.assert_close(factors.mean(dim=0), torch.ones(branches), rtol=0, atol=0.06)
    assert sorted({round(value, 4) for value in factors[:, 4].tolist()}) == [0.0, round(1 / 0.6, 4)]


# ------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"images": torch.zeros(3, 24, 24, dtype=torch.uint8)},
            r"\[batch, 3, height, width\], got shape \[3, 24, 24\]",
        ),
        ({"images": torch.zeros(2, 1, 24, 24)}, r"got shape \[2, 1, 24, 24\]"),
        ({"images": torch.zeros(2, 3, 24, 24, dtype=torch.int64)}, "uint8 .* or float .*, got torch.int64"),
        ({"images": torch.zeros(2, 3, 24, 25)}, "multiples of the patch size 6, got 24x25"),
        ({"images": torch.zeros(2, 3, 0, 24)}, "multiples of the patch size 6, got 0x24"),
        ({"images": torch.zeros(0, 3, 24, 24)}, "batch of 0"),
        (
            {"images": np.zeros((2, 3, 24, 24), np.uint8)},
            "must be a torch tensor .*, got ndarray: use torch.from_numpy",
        ),
        ({"images": torch.full((2, 3, 24, 24), float("nan"))}, r"not finite, in samples \[0, 1\]"),
        ({"tokens": torch.zeros(2, 8)}, r"int64 \[batch, words\], got torch.float32"),
        ({"tokens": torch.zeros(8, dtype=torch.int64)}, r"shape \[8\]"),
        ({"tokens": torch.zeros(0, 8, dtype=torch.int64)}, "batch of 0"),
        ({"tokens": torch.zeros(2, 9, dtype=torch.int64)}, "1 to 8 words, got 9"),
        ({"tokens": torch.full((2, 8), 64)}, "0 to 63, got 64"),
        ({"tokens": torch.full((2, 8), -1)}, "0 to 63, got -1"),
        ({"tokens": torch.zeros(3, 8, dtype=torch.int64)}, "2 images but 3 texts"),
        (
            {"superpixels": torch.zeros(2, 9, dtype=torch.int64)},
            r"\[2, 16\] .* 4x4 patches.*got shape \[2, 9\]",
        ),
        ({"superpixels": torch.zeros(2, 16)}, "integers, got torch.float32"),
        ({"superpixels": None}, "superpixel loss needs superpixels"),
        ({"noise": None}, "reconstruction loss needs noise"),
    ],
)
def test_bad_input_is_refused_before_any_work(model, make_inputs, change, message) -> None:
    inputs = make_inputs(2, model.config)._replace(**change)
    ran = []
    handles = [
        tower.register_forward_pre_hook(lambda *_: ran.append(1)) for tower in (model.vision, model.text)
    ]
    with pytest.raises(ValueError, match=message):
        model(*inputs)
    for handle in handles:
        handle.remove()
    assert not ran


def test_text_reconstruction_must_be_built_and_have_noise(model, tiny_model, make_inputs) -> None:
    inputs = make_inputs(2, model.config)
    with pytest.raises(ValueError, match="text_reconstruction=True"):
        model(*inputs, with_text_reconstruction=True)
    with pytest.raises(ValueError, match="text reconstruction loss needs noise"):
        tiny_model(text_reconstruction=True)(
            *inputs._replace(noise=None), with_reconstruction=False, with_text_reconstruction=True
        )
