"""bfloat16 against float32 on the golden inputs: what all parameters in bfloat16 cost in accuracy.

Stated tolerances: losses within 1 %, features within a cosine of 0.9995, no patch assigned otherwise (the golden noise
leaves no near-ties), the whole gradient within 20 % of its length and each parameter's within 35 % of its own.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F


@pytest.fixture(scope="module")
def passes(adapter, golden, cfg, state):
    arrays = golden("A_train.npz")
    inputs = {**arrays, **{key: arrays[f"fixed/{key}"] for key in ("gumbel_main", "gumbel_mae")}}
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        model = adapter.model_of(cfg, state).train().to(dtype)
        out = adapter.train_pass(model, inputs)
        losses = adapter.losses_of(out)
        sum(losses.values()).backward()
        gradients = {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None}
        found.append((out, losses, gradients))
    return found


def test_what_must_stay_in_float32_does(passes) -> None:
    _, (out, losses, _) = passes
    assert (
        out.image_embed_BE.dtype
        == out.text_embed_BE.dtype
        == out.vision.mid_hidden_BLC.dtype
        == torch.bfloat16
    )
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    for assignment in (out.vision.assignment, out.masked.aggregation.assignment):
        assert {
            tensor.dtype for tensor in (assignment.logits_BGL, assignment.hard_BGL, assignment.soft_BGL)
        } == {torch.float32}
    assert out.logit_scale.dtype == torch.float32


def test_losses(passes) -> None:
    (_, expected, _), (_, got, _) = passes
    for name, loss in expected.items():
        torch.testing.assert_close(got[name], loss, rtol=0.01, atol=0, msg=name)


def test_features_and_assignments(passes) -> None:
    (expected, _, _), (got, _, _) = passes
    for name in ("image_embed_BE", "text_embed_BE"):
        assert F.cosine_similarity(getattr(got, name).float(), getattr(expected, name)).min() > 0.9995
    assert torch.equal(got.hard_BGL, expected.hard_BGL)
    assert torch.equal(
        got.masked.aggregation.assignment.hard_BGL, expected.masked.aggregation.assignment.hard_BGL
    )


def test_gradients(passes) -> None:
    (_, _, expected), (_, _, got) = passes
    assert expected.keys() == got.keys()
    for name, gradient in expected.items():
        assert (got[name] - gradient).norm() <= 0.35 * gradient.norm(), name
    whole, other = (torch.cat([g.flatten() for g in gradients.values()]) for gradients in (expected, got))
    assert (other - whole).norm() <= 0.2 * whole.norm()
