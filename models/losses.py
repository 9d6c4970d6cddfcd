"""The training objective: weights of the loss parts, and which pairs of a batch are no negatives.

total = contrastive + w_k * superpixel KL + w_r * reconstruction (+ w_t * text reconstruction)
"""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

__all__ = ["LossConfig", "false_negatives"]


class LossConfig(BaseModel):
    """Weights of the loss parts; the paper's recipe has 1 for each.

    A part of weight 0 is not computed, but for the contrastive one, whose value is kept in the metrics.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    contrastive: float = Field(
        1.0,
        ge=0,
        description="Weight of the contrastive loss, which tells an image's caption from all others of the batch.",
    )
    superpixel_kl: float = Field(
        1.0,
        ge=0,
        description="Weight of the KL divergence that pulls the patches of a superpixel to one center. The loss itself "
        "is small, about 0.01: raise it to be felt.",
    )
    reconstruction: float = Field(
        1.0,
        ge=0,
        description="Weight of the squared error of the pixels of hidden patches, reconstructed from centers.",
    )
    text_reconstruction: float = Field(
        0.0, ge=0, description="Weight of the reconstruction of hidden words (model.text_reconstruction)."
    )
    skip_false_negatives: bool = Field(
        False,
        description="Leave a pair of an image and another image's text out of the negatives when the image's own "
        "caption has every word of that text (not in the paper).",
    )
    ring: bool = Field(
        False,
        description="Pass texts from rank to rank in the contrastive loss instead of gathering them all on each: "
        "same numbers, less memory, for very large batches.",
    )


def false_negatives(caption_tokens_BT: Tensor, text_tokens_NS: Tensor) -> Tensor:
    """Which texts may describe which images: all their words stand in the image's own caption.

    The end token must be the largest id of a text, as in CLIP's vocabulary; what follows it is padding.

    Args:
        caption_tokens_BT: int64, the whole captions of B images.
        text_tokens_NS: int64, the texts of N samples as the text tower sees them.

    Returns:
        bool [B, N]: true where text j may well be true of image i. The diagonal of a batch is true as well.
    """
    vocabulary, ids = torch.unique(
        torch.cat([caption_tokens_BT.flatten(), text_tokens_NS.flatten()]), return_inverse=True
    )
    caption_ids_BT = ids[: caption_tokens_BT.numel()].view_as(caption_tokens_BT)
    text_ids_NS = ids[caption_tokens_BT.numel() :].view_as(text_tokens_NS)
    caption_words_BU = _bag(caption_ids_BT, _before_end(caption_tokens_BT), len(vocabulary))
    text_words_NU = _bag(text_ids_NS, _before_end(text_tokens_NS), len(vocabulary))
    shared_BN = caption_words_BU @ text_words_NU.T
    return shared_BN == text_words_NU.sum(dim=1)


def _before_end(tokens_BT: Tensor) -> Tensor:
    """True up to and including the first end token, where the text tower stops reading."""
    places_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
    return places_T <= tokens_BT.argmax(dim=1, keepdim=True)


def _bag(ids_BT: Tensor, valid_BT: Tensor, size: int) -> Tensor:
    """Which ids occur: float32 [B, size] of zeros and ones."""
    bag = torch.zeros(ids_BT.shape[0], size, device=ids_BT.device)
    return bag.scatter_reduce_(1, ids_BT, valid_BT.float(), reduce="amax")
