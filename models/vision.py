"""The vision tower: patches, aggregation into centers, blocks on centers; and its second pass on visible
patches.

Shape letters: B batch, C width, E shared embedding, G centers, K visible patches, L patches, N = 1 + L, R
branches.
"""

from __future__ import annotations

import torch
from timm.layers import PatchEmbed
from torch import Tensor, nn

from segclip.kernels.patch_assignment import GumbelKey
from segclip.models.aggregation import CenterExpansion, PatchAggregation
from segclip.models.blocks import ENCODER_EPS, Block, run_block
from segclip.models.config import ModelConfig
from segclip.models.outputs import MaskedOutput, TowerOutput, VisionOutput
from segclip.models.positions import resample_grid

__all__ = ["VisionTower", "gather_patches"]


class VisionTower(nn.Module):
    """CLIP's vision transformer with an aggregation of patches into centers between its two stages."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, heads, recompute = config.vision_width, config.vision_heads, config.activation_checkpointing
        second_stage = config.vision_layers - config.first_stage_layers
        self.config = config
        self.recompute = recompute
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(1 + config.patches, width))
        self.patch_embed = PatchEmbed(None, config.patch_size, embed_dim=width, bias=False)
        self.ln_pre = nn.LayerNorm(width, eps=ENCODER_EPS)
        self.patch_blocks = nn.ModuleList(
            Block(width, heads, ENCODER_EPS, quick=config.quick_gelu)
            for _ in range(config.first_stage_layers)
        )
        self.aggregation = PatchAggregation(
            width, heads, config.centers, config.center_layers, config.assignment_temperature, recompute
        )
        self.center_blocks = nn.ModuleList(
            Block(width, heads, ENCODER_EPS, quick=config.quick_gelu) for _ in range(second_stage)
        )
        self.expansion = CenterExpansion(config.centers)
        self.reconstruction_blocks = nn.ModuleList(
            Block(width, heads, ENCODER_EPS, quick=config.quick_gelu) for _ in range(second_stage)
        )
        self.ln_post = nn.LayerNorm(width, eps=ENCODER_EPS)
        self.projection = nn.Parameter(torch.zeros(width, config.embed_dim))

    def forward(
        self,
        images_BCHW: Tensor,
        noise: Tensor | GumbelKey | None = None,
        kept_BL: Tensor | None = None,
        visible_order_BL: Tensor | None = None,
        masked_noise: Tensor | GumbelKey | None = None,
        keep_BR: Tensor | None = None,
    ) -> TowerOutput:
        """Encode images; with ``visible_order_BL`` also run the pass that sees visible patches only.

        Args:
            images_BCHW: normalised images in the type of the parameters; any size that the patch divides.
            noise: Gumbel noise of the main assignment [B, G, L] (L those kept) or its key; None evaluates.
            kept_BL: int64 numbers of the patches the main pass shall see; None for all.
            visible_order_BL: int64 permutation of all patches, the visible ones first.
            masked_noise: Gumbel noise of the visible patches' assignment [B, G, K] or its key.
            keep_BR: factors of the residual branches (drop path): two per block, first the blocks of the main
                pass (patch blocks, center blocks), then those of the second pass (patch blocks,
                reconstruction blocks).
        """
        grid = images_BCHW.shape[2] // self.config.patch_size, images_BCHW.shape[3] // self.config.patch_size
        embedded_BNC = self._embed(images_BCHW, grid)
        patches_BLC = embedded_BNC[:, 1:]
        main_keep, masked_keep = (None, None) if keep_BR is None else keep_BR.chunk(2, dim=1)

        kept_BLC = patches_BLC if kept_BL is None else gather_patches(patches_BLC, kept_BL)
        first = len(self.patch_blocks)
        mid_BLC = self._run(self.patch_blocks, kept_BLC, main_keep, 0)
        aggregation = self.aggregation(mid_BLC, noise)
        centers_BGC = self._run(self.center_blocks, aggregation.tokens_BGC, main_keep, first)
        pooled_BC = self._pool(centers_BGC, aggregation.assignment.hard_BGL)
        # The image feature and the centers share norm and projection: one product for both.
        both_BNE = self.ln_post(torch.cat([pooled_BC[:, None], centers_BGC], dim=1)) @ self.projection
        main = VisionOutput(
            image_embed_BE=both_BNE[:, 0],
            center_embed_BGE=both_BNE[:, 1:],
            center_tokens_BGC=centers_BGC,
            pooled_BC=pooled_BC,
            assignment=aggregation.assignment,
            query_BGC=aggregation.query_BGC,
            region_tokens_BGC=aggregation.tokens_BGC,
            mid_hidden_BLC=mid_BLC,
            embedded_BNC=embedded_BNC,
            kept_BL=kept_BL,
            grid=grid,
        )
        if visible_order_BL is None:
            return TowerOutput(main, None)

        visible = self.config.visible_patches(patches_BLC.shape[1])
        visible_BKC = gather_patches(patches_BLC, visible_order_BL[:, :visible])
        visible_BKC = self._run(self.patch_blocks, visible_BKC, masked_keep, 0)
        masked = self.aggregation(visible_BKC, masked_noise)
        expanded_BKC = self.expansion(masked.assignment.hard_BGL, masked.tokens_BGC)
        hidden_BKC = self._run(self.reconstruction_blocks, expanded_BKC, masked_keep, first)
        return TowerOutput(
            main, MaskedOutput(visible_order_BL, visible_BKC, masked, expanded_BKC, hidden_BKC)
        )

    @property
    def branches(self) -> int:
        """Residual branches that drop path may skip, over both passes."""
        return 4 * (len(self.patch_blocks) + len(self.center_blocks))

    def _embed(self, images_BCHW: Tensor, grid: tuple[int, int]) -> Tensor:
        patches_BLC = self.patch_embed(images_BCHW)
        class_B1C = self.class_embedding.expand(patches_BLC.shape[0], 1, -1)
        positions_NC = resample_grid(self.positional_embedding, self.config.grid, grid)
        # The class token is embedded and normed with the patches and then dropped, so that its parameters
        # receive a gradient of exactly zero, as in the original, and not none at all.
        out: Tensor = self.ln_pre(torch.cat([class_B1C, patches_BLC], dim=1) + positions_NC)
        return out

    def _run(self, blocks: nn.ModuleList, x_BLC: Tensor, keep_BR: Tensor | None, first: int) -> Tensor:
        for number, block in enumerate(blocks, start=first):
            keep_B2 = None if keep_BR is None else keep_BR[:, 2 * number : 2 * number + 2]
            x_BLC = run_block(block, x_BLC, keep_B2, recompute=self.recompute)
        return x_BLC

    def _pool(self, centers_BGC: Tensor, hard_BGL: Tensor) -> Tensor:
        if self.config.ignore_empty_centers:
            empty_BG1 = (hard_BGL.detach().sum(dim=2) < 0.5)[:, :, None]
            centers_BGC = centers_BGC.masked_fill(empty_BG1, float("-inf"))
        return centers_BGC.max(dim=1).values


def gather_patches(patches_BLC: Tensor, numbers_BK: Tensor) -> Tensor:
    """The patches of the given numbers: [B, K, C]."""
    return patches_BLC.gather(1, numbers_BK[:, :, None].expand(-1, -1, patches_BLC.shape[2]))
