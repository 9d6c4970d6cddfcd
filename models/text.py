"""The text tower: open_clip's, for texts of any length up to the context.

Shape letters: B batch, C width, E shared embedding, T words.
"""

from __future__ import annotations

import torch
from open_clip.transformer import TextTransformer
from torch import Tensor

from segclip.models.attention import MultiheadAttention
from segclip.models.blocks import run_block
from segclip.models.config import ModelConfig
from segclip.models.mlp import quick_gelu_mlp
from segclip.models.outputs import TextOutput

__all__ = ["TextTower"]


class TextTower(TextTransformer):
    """CLIP's causal text transformer; the feature is read at the end token, the largest id, where it first stands.

    A text may hold an end token before its own (a caption that spells out ``<|endoftext|>``). Then the feature is read
    at that first one, as in the original; the tower being causal, nothing behind it has a say.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(
            context_length=config.context_length,
            vocab_size=config.vocab_size,
            width=config.text_width,
            heads=config.text_heads,
            layers=config.text_layers,
            output_dim=config.embed_dim,
        )
        self.recompute = config.activation_checkpointing
        for block in self.transformer.resblocks:
            block.attn = MultiheadAttention(config.text_width, config.text_heads)
            if config.quick_gelu:
                block.mlp = quick_gelu_mlp(config.text_width, names=("c_fc", "c_proj"))

    def forward(
        self, tokens_BT: Tensor, with_hidden: bool = False, visible_BK: Tensor | None = None
    ) -> TextOutput:
        """Encode texts.

        Args:
            tokens_BT: int64 token ids, T at most the context length.
            with_hidden: also return every word in the shared space.
            visible_BK: int64 places of the words to read, in the order to read them in; None for all. A word
                keeps the position it had in the text and sees the words that are read before it.
        """
        words = tokens_BT.shape[1]
        x_BTC = self.token_embedding(tokens_BT) + self.positional_embedding[:words]
        if visible_BK is not None:
            x_BTC = x_BTC.gather(1, visible_BK[:, :, None].expand(-1, -1, x_BTC.shape[2]))
            tokens_BT, words = tokens_BT.gather(1, visible_BK), visible_BK.shape[1]
        mask_TT = self.attn_mask[:words, :words].to(x_BTC.dtype)
        for block in self.transformer.resblocks:
            x_BTC = run_block(block, x_BTC, None, None, mask_TT, recompute=self.recompute)
        x_BTC = self.ln_final(x_BTC)
        if with_hidden:
            hidden_BTE = x_BTC @ self.text_projection
            return TextOutput(_at_end(hidden_BTE, tokens_BT), hidden_BTE)
        return TextOutput(_at_end(x_BTC, tokens_BT) @ self.text_projection, None)


def _at_end(x_BTC: Tensor, tokens_BT: Tensor) -> Tensor:
    rows_B = torch.arange(tokens_BT.shape[0], device=tokens_BT.device)
    return x_BTC[rows_B, tokens_BT.argmax(dim=1)]
