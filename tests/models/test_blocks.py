from __future__ import annotations

from functools import partial

import torch
from timm.layers import QuickGELU
from timm.models.vision_transformer import Block as TimmBlock
from torch import nn

from segclip.models.blocks import Block, CrossBlock, run_block


def test_block_is_timms() -> None:
    for quick, activation in ((True, QuickGELU), (False, nn.GELU)):
        own = Block(32, 4, 1e-5, quick)
        reference = TimmBlock(
            32, 4, qkv_bias=True, act_layer=activation, norm_layer=partial(nn.LayerNorm, eps=1e-5)
        )
        reference.load_state_dict(own.state_dict())
        x = torch.randn(2, 5, 32)
        torch.testing.assert_close(own(x), reference(x))


def test_branches_are_skipped_and_scaled() -> None:
    block = Block(16, 2, 1e-5, quick=True)
    x = torch.randn(3, 5, 16)
    keep = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
    out = block(x, keep)
    torch.testing.assert_close(out[0], x[0])
    torch.testing.assert_close(out[1:2], block(x[1:2]))
    torch.testing.assert_close(out[2:], x[2:] + 2 * block.mlp(block.norm2(x[2:])))


def test_centers_look_at_their_own_image_only() -> None:
    block = CrossBlock(16, 2)
    centers, patches = torch.randn(3, 4, 16), torch.randn(3, 6, 16)
    together = block(centers, patches)
    for sample in range(3):
        alone = block(centers[sample : sample + 1], patches[sample : sample + 1])
        torch.testing.assert_close(together[sample : sample + 1], alone)


def test_recomputed_block_runs_twice_and_gives_the_same_gradient() -> None:
    block = Block(16, 2, 1e-5, quick=True)
    runs = []
    block.register_forward_pre_hook(lambda *_: runs.append(1))
    x = torch.randn(2, 5, 16)
    gradients = []
    for recompute in (False, True):
        runs.clear()
        block.zero_grad()
        run_block(block, x, None, recompute=recompute).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in block.parameters()])
        assert len(runs) == 1 + recompute
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)
    with torch.no_grad():
        runs.clear()
        run_block(block, x, None, recompute=True)
        assert len(runs) == 1
