"""Patch aggregation: learnable centers gather the patches of an image into region tokens, and hand them back.

Shape letters: B batch, C width, G centers, H heads, L patches.
"""

from __future__ import annotations

import torch
from timm.layers import Mlp, QuickGELU
from torch import Tensor, nn

from segclip.kernels.patch_assignment import GumbelKey, patch_assignment
from segclip.models.blocks import ENCODER_EPS, CrossBlock, run_block
from segclip.models.outputs import AggregationOutput

__all__ = ["CenterExpansion", "GroupedLinear", "PatchAggregation"]


class GroupedLinear(nn.Module):
    """Grouped 1x1 convolution over tokens: each group of channels is mixed among itself only, no bias."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        # Shape of an nn.Conv1d's weight, and its default start.
        self.weight = nn.Parameter(torch.empty(width, width // groups, 1))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(self, x_BLC: Tensor) -> Tensor:
        """[B, L, C] -> [B, L, C]."""
        batch, tokens, width = x_BLC.shape
        # One matrix product per group: far less overhead than a convolution with transposes around it.
        x_HMI = x_BLC.reshape(batch * tokens, self.groups, -1).transpose(0, 1)
        weight_HIO = self.weight.view(self.groups, width // self.groups, -1).transpose(1, 2)
        return torch.bmm(x_HMI, weight_HIO).transpose(0, 1).reshape(batch, tokens, width)


class PatchAggregation(nn.Module):
    """Centers look at the patches, each patch is assigned to one center, each center averages its patches."""

    def __init__(
        self, width: int, heads: int, centers: int, layers: int, temperature: float, recompute: bool = False
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.recompute = recompute
        self.centers = nn.Parameter(torch.zeros(centers, width))
        self.cross_blocks = nn.ModuleList(CrossBlock(width, heads) for _ in range(layers))
        self.norm_query = nn.LayerNorm(width, eps=ENCODER_EPS)
        self.norm_patches = nn.LayerNorm(width, eps=ENCODER_EPS)
        self.key = GroupedLinear(width, heads)
        self.norm_key = nn.LayerNorm(width, eps=ENCODER_EPS)
        self.value = GroupedLinear(width, heads)
        self.norm_out = nn.LayerNorm(width, eps=ENCODER_EPS)
        self.mlp = Mlp(width, 4 * width, act_layer=nn.GELU)
        self.act_out = QuickGELU()

    def forward(self, patches_BLC: Tensor, noise: Tensor | GumbelKey | None = None) -> AggregationOutput:
        """Gather patches into center tokens.

        Args:
            patches_BLC: tokens of the first stage.
            noise: Gumbel noise [B, G, L] or its key in training; None in evaluation (then no temperature
                either).
        """
        query_BGC = self.centers.expand(patches_BLC.shape[0], -1, -1)
        for block in self.cross_blocks:
            query_BGC = run_block(block, query_BGC, patches_BLC, recompute=self.recompute)
        query_BGC = self.norm_query(query_BGC)
        normed_BLC = self.norm_patches(patches_BLC)
        # Under torch.autocast products come out narrower than sums.
        assignment = patch_assignment(
            query_BGC,
            self.norm_key(self.key(normed_BLC)).to(query_BGC.dtype),
            self.value(normed_BLC).to(query_BGC.dtype),
            noise,
            self.temperature if noise is not None else 1.0,
        )
        tokens_BGC = self.act_out(self.mlp(self.norm_out(query_BGC + assignment.regions_BGC)))
        return AggregationOutput(tokens_BGC, query_BGC, assignment)


class CenterExpansion(nn.Module):
    """Hands center tokens back to the patches assigned to them."""

    def __init__(self, centers: int) -> None:
        super().__init__()
        self.mix = nn.Linear(centers, centers)
        self.act = QuickGELU()

    def forward(self, hard_BGL: Tensor, tokens_BGC: Tensor) -> Tensor:
        """Assignment [B, G, L] and center tokens [B, G, C] -> patch tokens [B, L, C]."""
        weight_BLG = self.mix(hard_BGL.transpose(1, 2).to(tokens_BGC.dtype))
        out: Tensor = self.act(weight_BLG @ tokens_BGC)
        return out
