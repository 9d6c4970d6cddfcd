"""The network against the original: evaluation, other sizes, training pass, text reconstruction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from segclip.kernels.contrastive import contrastive_loss
from segclip.models.names import from_released, released_name
from segclip.models.noise import InjectedNoise

SIZES = ["128x128", "32x128", "64x256"]


def test_evaluation(adapter, golden, under, compare, cfg, state) -> None:
    arrays = golden("A_eval.npz")
    common = {name: arrays[name] for name in ("mid_hidden", "tokens_lnpre", "text_embed", "text_hidden")}
    got = adapter.eval_outputs(cfg, state, arrays, "fixed")
    compare({**common, **under(arrays, "fixed/")}, got)


@pytest.mark.parametrize("size", SIZES)
def test_other_sizes(size, adapter, golden, under, compare, cfg, state) -> None:
    reference = under(golden("A_eval.npz"), f"size_{size}/")
    compare(reference, adapter.eval_size(cfg, state, reference["image"]), ignore=("image",))


def test_all_golden_sizes_are_tested(golden) -> None:
    assert sorted({key.split("/")[0] for key in golden("A_eval.npz") if key.startswith("size_")}) == sorted(
        f"size_{size}" for size in SIZES
    )


@torch.inference_mode()
def test_words_under_templates(adapter, golden, compare, cfg, state) -> None:
    from segclip.eval.text import average_templates

    arrays = golden("A_eval.npz")
    tokens = torch.tensor(arrays["template_tokens"])
    model = adapter.model_of(cfg, state).eval()
    embed = model.encode_text(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
    compare(
        {"template_embedding": arrays["template_embedding"]},
        {"template_embedding": average_templates(embed, "mean_then_normalise").numpy()},
    )


@pytest.mark.parametrize("variant", ["fixed", "fixed_count1"])
def test_training_pass(variant, adapter, golden, under, compare, cfg, state) -> None:
    arrays = golden("A_train.npz")
    reference = under(arrays, f"{variant}/")
    inputs = {**arrays, "gumbel_main": reference["gumbel_main"], "gumbel_mae": reference["gumbel_mae"]}
    got = adapter.train_outputs(cfg, state, inputs, "fixed")
    ignore = {"gumbel_main", "gumbel_mae", "min_margin", *(key for key in reference if key.endswith("_f64"))}
    compare(reference, thinned(got, reference), ignore=ignore)


def thinned(got: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, Any]:
    """Golden gradients called ``grad_s3/x`` hold every third row of the gradient of x."""
    result = dict(got)
    for key in reference:
        if key.startswith("grad_s"):
            step, name = key.removeprefix("grad_s").split("/", 1)
            result[key] = got[f"grad/{name}"][:: int(step)]
    return result


def test_temperature_above_the_clamp_has_no_gradient(adapter, golden, under, compare, cfg, state) -> None:
    arrays = golden("A_train.npz")
    inputs = {**arrays, **{key: arrays[f"fixed/{key}"] for key in ("gumbel_main", "gumbel_mae")}}
    reference = under(arrays, "clamped/")
    model = adapter.model_of(cfg, {**state, "clip.logit_scale": reference["logit_scale"]}).train()
    out = adapter.train_pass(model, inputs)
    loss = contrastive_loss(out.image_embed_BE, out.text_embed_BE, out.logit_scale)
    loss.backward()
    unit = torch.nn.functional.normalize
    logits = out.logit_scale * unit(out.text_embed_BE, dim=-1) @ unit(out.image_embed_BE, dim=-1).T
    got = {
        "logit_scale": model.logit_scale.detach().numpy(),
        "logits_t2v": logits.detach().numpy(),
        "loss_contrastive": loss.detach().numpy(),
        "grad/clip.logit_scale": model.logit_scale.grad.numpy(),
        "grad/clip.visual.proj": model.vision.projection.grad.numpy(),
    }
    assert out.logit_scale == 100
    compare(reference, thinned(got, reference))


def test_text_reconstruction(adapter, golden, under, compare, cfg, state) -> None:
    arrays, train = golden("A_textmae.npz"), golden("A_train.npz")
    model = adapter.model_of(
        cfg,
        {**state, **under(arrays, "state/")},
        text_reconstruction=True,
        text_decoder_words=cfg["max_words"],
    ).train()
    tokens = adapter.tokens_of(train["input_ids"])
    order = original_word_order(torch.tensor(arrays["text_rand"]), tokens)
    visible = model.config.visible_words(tokens.shape[1])
    # Evaluation noise in the main pass: only the text side is compared with it.
    noise = InjectedNoise(
        torch.tensor(train["fixed/gumbel_main"]),
        torch.tensor(train["fixed/gumbel_mae"]),
        torch.tensor(train["mae_rand"])[:, 1:],
        word_order_BT=order,
    )
    out = model(
        torch.tensor(train["images"]),
        tokens,
        noise=noise,
        with_superpixel=False,
        with_reconstruction=False,
        with_text_reconstruction=True,
    )
    contrastive = contrastive_loss(out.image_embed_BE, out.text_embed_BE, out.logit_scale)
    total = contrastive + out.loss_text_reconstruction
    total.backward()
    gradients = {released_name(name): parameter.grad for name, parameter in model.named_parameters()}
    hidden = model.text(tokens, with_hidden=True, visible_BK=order[:, :visible]).hidden_BTE
    mask = torch.ones(tokens.shape).scatter_(1, order[:, :visible], 0.0)
    got = {
        "mask": mask.numpy(),
        "ids_restore": order.argsort(dim=1).numpy(),
        "ids_keep": order[:, :visible].numpy(),
        "loss_mask": (mask.bool() & (torch.tensor(train["attention_mask"])[:, 0] > 0)).numpy(),
        "seq_hidden": hidden.detach().numpy(),
        "loss_text_mae": out.loss_text_reconstruction.detach().numpy(),
        "loss_total_contrastive_plus_text": total.detach().numpy(),
        **{key: gradients[key.removeprefix("grad/")].numpy() for key in arrays if key.startswith("grad/")},
    }
    reference = {key: value for key, value in arrays.items() if not key.startswith("state/")}
    compare(reference, got, ignore=("text_rand",))
    expected = from_released({key: torch.tensor(value) for key, value in under(arrays, "state/").items()})
    assert torch.equal(model.text_decoder.positions, expected["text_decoder.positions"])


def original_word_order(scores_BT: Tensor, tokens_BT: Tensor) -> Tensor:
    """The original means to keep each text's end, but marks the ends of all texts in the first text's row."""
    scores_BT = scores_BT.clone()
    scores_BT[:, 0] = -1
    scores_BT[0, tokens_BT.argmax(dim=1)] = -1
    return scores_BT.argsort(dim=1, stable=True)


def test_fixed_tables_are_the_originals(adapter, compare, cfg, state) -> None:
    model: Callable[..., Any] = adapter.SegCLIP(adapter.config_of(cfg))
    compare(
        {"table": state["vis_mae_decoder.decoder_pos_embed"]},
        {"table": model.decoder.positions.numpy()},  # type: ignore[attr-defined]
    )
    assert np.abs(state["vis_mae_decoder.decoder_pos_embed"]).max() > 0.9
