"""The training objective: weights of the loss parts, and which pairs of a batch are no negatives.

total = contrastive + w_k * superpixel KL + w_r * reconstruction (+ w_t * text reconstruction)
"""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

__all__ = ["LossConfig", "false_negatives"]


class LossConfig(BaseModel):
    """Weights of the loss parts; the paper's recipe has 1 for each. A part of weight 0 is not computed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    contrastive: float = Field(1.0, ge=0, description="Weight of the image-text contrastive loss.")
    superpixel_kl: float = Field(
        1.0,
        ge=0,
        description="Weight of the superpixel KL. The loss itself is small, about 0.01: raise it to be felt.",
    )
    reconstruction: float = Field(1.0, ge=0, description="Weight of the masked reconstruction of pixels.")
    text_reconstruction: float = Field(0.0, ge=0, description="Weight of the masked reconstruction of words.")
    skip_false_negatives: bool = Field(
        False,
        description="Leave a pair of an image and another image's text out of the negatives when the image's own "
        "caption has every word of that text, and every pair of neighbouring words (not in the paper).",
    )


def false_negatives(caption_tokens_BT: Tensor, text_tokens_NS: Tensor) -> Tensor:
    """Which texts may describe which images: all their words, and all pairs of neighbours among these, stand in the
    image's own caption.

    Pairs keep "a red circle" a negative of "a red star and a white circle", which has the same words.
    A text begins with one start token and ends with the largest of its ids, as in CLIP's vocabulary.

    Args:
        caption_tokens_BT: int64, the whole captions of B images.
        text_tokens_NS: int64, the texts of N samples as the text tower sees them.

    Returns:
        bool [B, N]: true where text j may well be true of image i. The diagonal of a batch is true as well.
    """
    caption_terms_BP, caption_valid_BP = _terms(caption_tokens_BT)
    text_terms_NQ, text_valid_NQ = _terms(text_tokens_NS)
    terms, ids = torch.unique(
        torch.cat([caption_terms_BP.flatten(), text_terms_NQ.flatten()]), return_inverse=True
    )
    caption_ids, text_ids = ids.split([caption_terms_BP.numel(), text_terms_NQ.numel()])
    caption_bag_BU = _bag(caption_ids.view_as(caption_terms_BP), caption_valid_BP, len(terms))
    text_bag_NU = _bag(text_ids.view_as(text_terms_NQ), text_valid_NQ, len(terms))
    return caption_bag_BU @ text_bag_NU.T == text_bag_NU.sum(dim=1)


def _terms(tokens_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Words and pairs of neighbours as ids [B, 2T - 1], and which of them lie between start and end of the text."""
    places_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
    inside_BT = (places_T > 0) & (places_T < tokens_BT.argmax(dim=1, keepdim=True))
    # The first word counts from one, so that no pair can be mistaken for a single word.
    pairs_BS = (tokens_BT[:, :-1] + 1) * 2**32 + tokens_BT[:, 1:]
    return torch.cat([tokens_BT, pairs_BS], dim=1), torch.cat(
        [inside_BT, inside_BT[:, :-1] & inside_BT[:, 1:]], dim=1
    )


def _bag(ids_BP: Tensor, valid_BP: Tensor, size: int) -> Tensor:
    """Which ids occur: float32 [B, size] of zeros and ones."""
    bag = torch.zeros(ids_BP.shape[0], size, device=ids_BP.device)
    return bag.scatter_reduce_(1, ids_BP, valid_BP.float(), reduce="amax")
