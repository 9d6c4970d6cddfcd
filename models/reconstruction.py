"""The decoder of a masked autoencoder: predicts the pixels of patches that the encoder did not see.

Shape letters: B batch, C encoder width, D decoder width, K visible patches, L patches, M masked patches, N =
1 + L, P values of a patch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from segclip.kernels.masked_decoder import unshuffle
from segclip.models.blocks import Block, run_block
from segclip.models.config import ModelConfig
from segclip.models.positions import sin_cos_2d

__all__ = ["DECODER_EPS", "MaskedImageDecoder"]

DECODER_EPS = 1e-6


class MaskedImageDecoder(nn.Module):
    """Narrow transformer over visible tokens and mask tokens in image order."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.decoder_width
        self.grid = config.grid
        self.recompute = config.activation_checkpointing
        self.embed = nn.Linear(config.vision_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        # A parameter only because released checkpoints hold it; it is never trained.
        self.positions = nn.Parameter(sin_cos_2d(width, config.grid)[None], requires_grad=False)
        self.blocks = nn.ModuleList(
            Block(width, config.decoder_heads, DECODER_EPS, quick=False) for _ in range(config.decoder_depth)
        )
        self.norm = nn.LayerNorm(width, eps=DECODER_EPS)
        self.head = nn.Linear(width, 3 * config.patch_size**2)

    def forward(
        self, hidden_BKC: Tensor, order_BL: Tensor, grid: tuple[int, int], only_masked: bool = True
    ) -> Tensor:
        """Predict pixels.

        Args:
            hidden_BKC: visible patches in the order they were kept.
            order_BL: int64 patch numbers, visible ones first.
            grid: rows and columns of patches.
            only_masked: predict the M masked patches, in the order of ``order_BL``; otherwise all N places,
                the class token's first and then patches in row order.

        Returns:
            [B, M, P] or [B, N, P]: normalised pixels in (row, column, channel) order.
        """
        visible = hidden_BKC.shape[1]
        # The class token's place is taken by the mean of the visible tokens.
        tokens_BKC = torch.cat([hidden_BKC.mean(dim=1, keepdim=True), hidden_BKC], dim=1)
        restore_BN = torch.cat([torch.zeros_like(order_BL[:, :1]), order_BL.argsort(dim=1) + 1], dim=1)
        positions_ND = self.positions[0]
        if grid != self.grid:
            positions_ND = sin_cos_2d(self.positions.shape[2], grid).to(positions_ND)
        # Under torch.autocast the product comes out narrower than what stands beside it.
        embedded_BKD = self.embed(tokens_BKC).to(self.mask_token.dtype)
        x_BND = unshuffle(embedded_BKD, restore_BN, self.mask_token[0, 0], positions_ND)
        for block in self.blocks:
            x_BND = run_block(block, x_BND, recompute=self.recompute)
        if only_masked:
            masked_BM = order_BL[:, visible:] + 1
            x_BND = x_BND.gather(1, masked_BM[:, :, None].expand(-1, -1, x_BND.shape[2]))
        out: Tensor = self.head(self.norm(x_BND))
        return out
