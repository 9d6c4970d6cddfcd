from __future__ import annotations

import pytest
import torch
from timm.layers import Attention
from torch import nn

from segclip.models import attention
from segclip.models.attention import MultiheadAttention, SelfAttention, attend


@pytest.fixture(params=[0, attention.PLAIN_SCORES_CPU], ids=["fused", "plain"])
def either_way(request, monkeypatch) -> None:
    monkeypatch.setattr(attention, "PLAIN_SCORES_CPU", request.param)


def test_both_ways_agree(monkeypatch) -> None:
    query, key, value = (torch.randn(2, 3, n, 8, dtype=torch.float64) for n in (5, 7, 7))
    mask = torch.randn(5, 7, dtype=torch.float64)
    plain = attend(query, key, value, mask)
    monkeypatch.setattr(attention, "PLAIN_SCORES_CPU", 0)
    fused = attend(query, key, value, mask)
    assert plain.shape == (2, 5, 24)
    torch.testing.assert_close(fused, plain)


@pytest.mark.usefixtures("either_way")
def test_self_attention_is_timms() -> None:
    own = SelfAttention(32, num_heads=4, qkv_bias=True)
    reference = Attention(32, num_heads=4, qkv_bias=True)
    reference.load_state_dict(own.state_dict())
    x = torch.randn(3, 7, 32)
    torch.testing.assert_close(own(x), reference(x))


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_multihead_attention_is_torchs(cross, masked) -> None:
    own = MultiheadAttention(32, 4)
    nn.init.normal_(own.in_proj_bias)
    reference = nn.MultiheadAttention(32, 4, batch_first=True)
    reference.load_state_dict(own.state_dict())
    query = torch.randn(3, 5, 32)
    key = torch.randn(3, 6, 32) if cross else query
    mask = torch.full((5, key.shape[1]), float("-inf")).triu(1) if masked else None
    expected, _ = reference(query, key, key, need_weights=False, attn_mask=mask)
    torch.testing.assert_close(own(query, key, key, attn_mask=mask)[0], expected)


def test_slow_bfloat16_products_are_avoided(monkeypatch) -> None:
    query = torch.randn(1, 1, 4, 8)
    monkeypatch.setattr(attention, "_cpu_multiplies_bfloat16", lambda: False)
    assert attention._plain_is_faster(query, 4)
    assert not attention._plain_is_faster(query.bfloat16(), 4)
    monkeypatch.setattr(attention, "_cpu_multiplies_bfloat16", lambda: True)
    assert attention._plain_is_faster(query.bfloat16(), 4)


def test_the_plain_softmax_of_bfloat16_is_float32(monkeypatch) -> None:
    monkeypatch.setattr(attention, "_cpu_multiplies_bfloat16", lambda: True)
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, 2, n, 16, generator=generator).bfloat16() for n in (24, 60, 60)]
    upstream = torch.randn(2, 24, 32, generator=generator).bfloat16()

    def gradients(compute, dtype):
        query, key, value = (tensor.to(dtype).requires_grad_() for tensor in inputs)
        out = compute(query, key, value)
        assert out.dtype == dtype
        found = torch.autograd.grad(out, (query, key, value), upstream.to(dtype))
        return [out.detach(), *found]

    def in_bfloat16(query, key, value):
        weights = ((query * 16**-0.5) @ key.transpose(-2, -1)).softmax(dim=-1)
        return (weights @ value).transpose(1, 2).flatten(2)

    assert attention._plain_is_faster(inputs[0], 60)
    exact = gradients(attend, torch.float64)
    ours, rounded = (
        [float((found.double() - right).norm()) for found, right in zip(each, exact, strict=True)]
        for each in (gradients(attend, torch.bfloat16), gradients(in_bfloat16, torch.bfloat16))
    )
    # Rounded weights go into the last product either way; the gradient of the scores needs them exact.
    assert ours[0] <= 1.02 * rounded[0]
    assert ours[1] < 0.95 * rounded[1]
    assert ours[2] < 0.95 * rounded[2]
    assert ours[3] <= 1.02 * rounded[3]
