"""The text decoder: predicts words that the text tower did not see (an option of the original, off in its
recipe).

Shape letters: B batch, D decoder width, E shared embedding, K visible words, T words, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn

from segclip.kernels.masked_decoder import unshuffle
from segclip.models.attention import MultiheadAttention
from segclip.models.blocks import run_block
from segclip.models.config import ModelConfig
from segclip.models.positions import sin_cos_1d
from segclip.models.reconstruction import DECODER_EPS

__all__ = ["MaskedTextDecoder", "hidden_words", "masked_word_loss", "valid_words", "word_order"]


class TextDecoderBlock(nn.Module):
    """Pre-norm block with exact GELU, in which no word attends to padding."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        norm: Callable[[], nn.LayerNorm] = lambda: nn.LayerNorm(width, eps=DECODER_EPS)  # noqa: E731
        self.norm1 = norm()
        self.attn = MultiheadAttention(width, heads)
        self.norm2 = norm()
        self.mlp = Mlp(width, 4 * width, act_layer=nn.GELU)

    def forward(self, x_BTD: Tensor, mask_B11T: Tensor) -> Tensor:
        """One block; ``mask_B11T`` is added to the attention scores."""
        normed_BTD = self.norm1(x_BTD)
        x_BTD = x_BTD + self.attn(normed_BTD, normed_BTD, normed_BTD, attn_mask=mask_B11T)[0]
        out: Tensor = x_BTD + self.mlp(self.norm2(x_BTD))
        return out


class MaskedTextDecoder(nn.Module):
    """Narrow transformer over visible words and mask tokens in the order of the text."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.text_decoder_width
        self.recompute = config.activation_checkpointing
        self.embed = nn.Linear(config.embed_dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        # A parameter only because checkpoints of the original hold it; it is never trained.
        self.positions = nn.Parameter(sin_cos_1d(width, config.text_decoder_words)[None], requires_grad=False)
        self.blocks = nn.ModuleList(
            TextDecoderBlock(width, config.text_decoder_heads) for _ in range(config.text_decoder_depth)
        )
        self.norm = nn.LayerNorm(width, eps=DECODER_EPS)
        self.head = nn.Linear(width, config.vocab_size)

    def forward(self, hidden_BKE: Tensor, order_BT: Tensor, valid_BT: Tensor) -> Tensor:
        """Predict words.

        Args:
            hidden_BKE: visible words in the order they were kept.
            order_BT: int64 word places, visible ones first.
            valid_BT: bool, false at padding.

        Returns:
            Logits [B, T, V].
        """
        words = order_BT.shape[1]
        # Under torch.autocast the product comes out narrower than what stands beside it.
        embedded_BKD = self.embed(hidden_BKE).to(self.mask_token.dtype)
        x_BTD = unshuffle(
            embedded_BKD, order_BT.argsort(dim=1), self.mask_token[0, 0], self.positions[0, :words]
        )
        mask_B11T = torch.zeros_like(valid_BT, dtype=x_BTD.dtype).masked_fill(~valid_BT, -1e6)[
            :, None, None, :
        ]
        for block in self.blocks:
            x_BTD = run_block(block, x_BTD, mask_B11T, recompute=self.recompute)
        out: Tensor = self.head(self.norm(x_BTD))
        return out


def valid_words(tokens_BT: Tensor) -> Tensor:
    """bool [B, T]: true up to and including the last end token, the largest id of a text; behind it is padding."""
    places_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
    return places_T <= (tokens_BT.shape[1] - 1 - tokens_BT.flip(1).argmax(dim=1, keepdim=True))


def word_order(scores_BT: Tensor, tokens_BT: Tensor) -> Tensor:
    """Places of the words, visible ones first: the first word, the end, and then by rising score."""
    scores_BT = scores_BT.clone()
    scores_BT[:, 0] = -2.0
    scores_BT.scatter_(1, tokens_BT.argmax(dim=1, keepdim=True), -1.0)
    return scores_BT.argsort(dim=1, stable=True)


def hidden_words(tokens_BT: Tensor, order_BT: Tensor, visible: int) -> Tensor:
    """bool [B, T]: the words to predict, those behind the first ``visible`` of the order that are no padding."""
    hidden_BT = torch.zeros_like(tokens_BT, dtype=torch.bool).scatter_(1, order_BT[:, visible:], True)
    return hidden_BT & valid_words(tokens_BT)


def masked_word_loss(logits_BTV: Tensor, tokens_BT: Tensor, order_BT: Tensor, visible: int) -> Tensor:
    """Mean cross-entropy over ``hidden_words``, a float32 scalar; 0 where there are none."""
    hidden_BT = hidden_words(tokens_BT, order_BT, visible)
    logits_BTV = logits_BTV.to(torch.promote_types(logits_BTV.dtype, torch.float32))
    targets_BT = tokens_BT.masked_fill(~hidden_BT, -1)
    total = F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), ignore_index=-1, reduction="sum")
    return total / hidden_BT.sum().clamp_min(1)
