"""Transformer blocks: those of the vision tower and the one in which centers look at patches.

Shape letters: B batch, C width, G centers, L tokens, S = G + L.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import Block as TimmBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from segclip.models.attention import MultiheadAttention, SelfAttention
from segclip.models.mlp import quick_gelu_mlp

__all__ = ["ENCODER_EPS", "Block", "CrossBlock", "run_block"]

ENCODER_EPS = 1e-5


class Block(TimmBlock):
    """timm's pre-norm block; a sample may skip its branches (drop path)."""

    def __init__(self, width: int, heads: int, eps: float, quick: bool) -> None:
        """
        Args:
            eps: of the norms.
            quick: QuickGELU, as in CLIP; otherwise exact GELU.
        """
        super().__init__(
            width, heads, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=eps), attn_layer=SelfAttention
        )
        if quick:
            self.mlp = quick_gelu_mlp(width)

    def forward(self, x_BLC: Tensor, keep_B2: Tensor | None = None) -> Tensor:
        """One block.

        Args:
            x_BLC: tokens.
            keep_B2: factors of the two branches, 0 where a sample skips one; None for 1.
        """
        if keep_B2 is None:
            x_BLC = x_BLC + self.attn(self.norm1(x_BLC))
            return x_BLC + self.mlp(self.norm2(x_BLC))
        keep_1, keep_2 = keep_B2.to(x_BLC.dtype)[:, :, None, None].unbind(1)
        x_BLC = x_BLC + keep_1 * self.attn(self.norm1(x_BLC))
        return x_BLC + keep_2 * self.mlp(self.norm2(x_BLC))


class CrossBlock(nn.Module):
    """Centers attend to themselves and the patches of their image, then pass a perceptron; both residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_query = nn.LayerNorm(width, eps=ENCODER_EPS)
        self.norm_key = nn.LayerNorm(width, eps=ENCODER_EPS)
        self.attn = MultiheadAttention(width, heads)
        self.norm_mlp = nn.LayerNorm(width, eps=ENCODER_EPS)
        self.mlp = quick_gelu_mlp(width)

    def forward(self, centers_BGC: Tensor, patches_BLC: Tensor) -> Tensor:
        """Centers [B, G, C] after one look at the patches [B, L, C]."""
        key_BSC = self.norm_key(torch.cat([centers_BGC, patches_BLC], dim=1))
        centers_BGC = centers_BGC + self.attn(self.norm_query(centers_BGC), key_BSC, key_BSC)[0]
        out: Tensor = centers_BGC + self.mlp(self.norm_mlp(centers_BGC))
        return out


def run_block(block: nn.Module, *inputs: Any, recompute: bool) -> Tensor:
    """``block(*inputs)``; with ``recompute`` its inside is computed again in the backward pass instead of
    kept.

    No random state is saved for the second run: nothing in a block draws random numbers.
    """
    if recompute and torch.is_grad_enabled():
        out: Tensor = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
    else:
        out = block(*inputs)
    return out
