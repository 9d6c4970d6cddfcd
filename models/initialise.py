"""How a network starts when it is not loaded from anywhere: the original's rule for new parameters.

Every linear layer starts at N(0, 0.02) (``linear_init_std``) with zero bias, except the joint query-key-value
projections of the encoders, which keep the uniform start of ``nn.MultiheadAttention``; embeddings and projections
start as in CLIP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from segclip.models.attention import MultiheadAttention, SelfAttention
from segclip.models.vision import VisionTower

if TYPE_CHECKING:
    from segclip.models.segclip import SegCLIP

__all__ = ["initialise"]

EMBEDDING_STD = 0.02


def initialise(model: SegCLIP) -> None:
    """Set the start values of all parameters, in place, from torch's random state."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=model.config.linear_init_std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=EMBEDDING_STD)
        elif isinstance(module, MultiheadAttention):
            nn.init.xavier_uniform_(module.in_proj_weight)
            nn.init.zeros_(module.in_proj_bias)
    vision, text = model.vision, model.text
    for module in vision.modules():
        if isinstance(module, SelfAttention):
            nn.init.xavier_uniform_(module.qkv.weight)
    _initialise_vision_embeddings(vision)
    nn.init.normal_(vision.aggregation.centers, std=model.config.center_init_std)
    nn.init.normal_(text.positional_embedding, std=0.01)
    nn.init.normal_(text.text_projection, std=model.config.text_width**-0.5)
    nn.init.normal_(model.decoder.mask_token, std=EMBEDDING_STD)
    if model.text_decoder is not None:
        nn.init.normal_(model.text_decoder.mask_token, std=EMBEDDING_STD)


def _initialise_vision_embeddings(vision: VisionTower) -> None:
    std = vision.config.vision_width**-0.5
    nn.init.normal_(vision.class_embedding, std=std)
    nn.init.normal_(vision.positional_embedding, std=std)
    nn.init.normal_(vision.projection, std=std)
