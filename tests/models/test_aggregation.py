from __future__ import annotations

import torch
from torch import nn

from segclip.models.aggregation import CenterExpansion, GroupedLinear, PatchAggregation


def test_grouped_linear_is_a_grouped_convolution() -> None:
    own = GroupedLinear(24, 3)
    reference = nn.Conv1d(24, 24, 1, groups=3, bias=False)
    reference.load_state_dict(own.state_dict())
    x = torch.randn(2, 5, 24)
    torch.testing.assert_close(own(x), reference(x.transpose(1, 2)).transpose(1, 2))


def test_temperature_only_with_noise() -> None:
    torch.manual_seed(0)
    layer = PatchAggregation(16, 2, centers=3, layers=1, temperature=0.5)
    nn.init.normal_(layer.centers)
    patches = torch.randn(2, 6, 16)
    quiet = layer(patches)
    still = layer(patches, torch.zeros(2, 3, 6))
    assert torch.equal(quiet.assignment.logits_BGL, still.assignment.logits_BGL)
    # Without noise the temperature does not change which center wins, but it changes the gradient.
    assert torch.equal(quiet.assignment.hard_BGL, still.assignment.hard_BGL)
    gradients = [torch.autograd.grad(out.tokens_BGC.sum(), layer.key.weight)[0] for out in (quiet, still)]
    assert not torch.allclose(*gradients)


def test_expansion_gives_patches_of_a_center_the_same_token() -> None:
    layer = CenterExpansion(3)
    hard = torch.eye(3)[torch.tensor([[0, 2, 0, 1]])].transpose(1, 2)
    out = layer(hard, torch.randn(1, 3, 8))
    assert out.shape == (1, 4, 8)
    assert torch.equal(out[0, 0], out[0, 2])
    assert not torch.equal(out[0, 0], out[0, 1])
