"""Networks of the sizes that are used."""

from __future__ import annotations

from typing import Any

from segclip.models.config import ModelConfig
from segclip.models.segclip import SegCLIP

__all__ = [
    "SIZES",
    "segclip_quickstart",
    "segclip_vit_b16",
    "segclip_vit_b32",
    "segclip_vit_l14",
]

SIZES: dict[str, dict[str, Any]] = {
    "vit_b32": {"patch_size": 32},
    "vit_b16": {"patch_size": 16},
    "vit_l14": {
        "patch_size": 14,
        "vision_width": 1024,
        "vision_heads": 16,
        "vision_layers": 24,
        "first_stage_layers": 20,
        "embed_dim": 768,
        "text_width": 768,
        "text_heads": 12,
    },
    "quickstart": {
        "image_size": 48,
        "patch_size": 6,
        "vision_width": 64,
        "vision_heads": 2,
        "vision_layers": 3,
        "first_stage_layers": 2,
        "linear_init_std": 0.1,
        "center_init_std": 1.0,
        "assignment_temperature": 3.0,
        "ignore_empty_centers": True,
        "embed_dim": 64,
        "text_width": 64,
        "text_heads": 2,
        "text_layers": 1,
        "context_length": 16,
        "mask_ratio": 0.85,
        "decoder_depth": 1,
        "decoder_heads": 2,
    },
}
"""What each size sets; everything else is ``ModelConfig``'s default, the paper's ViT-B/16."""


def segclip_vit_b32(**changes: Any) -> SegCLIP:
    """ViT-B/32 at 224 pixels."""
    return _build("vit_b32", changes)


def segclip_vit_b16(**changes: Any) -> SegCLIP:
    """ViT-B/16 at 224 pixels, the paper's: 188.8 million parameters."""
    return _build("vit_b16", changes)


def segclip_vit_l14(**changes: Any) -> SegCLIP:
    """ViT-L/14 at 224 pixels; 20 of its 24 blocks stand before the aggregation."""
    return _build("vit_l14", changes)


def segclip_quickstart(**changes: Any) -> SegCLIP:
    """The network of ``configs/quickstart.yaml``: 48-pixel pictures on a laptop, 3 of its 3.6 million
    parameters are word embeddings."""
    return _build("quickstart", changes)


def _build(size: str, changes: dict[str, Any]) -> SegCLIP:
    return SegCLIP(ModelConfig(**{**SIZES[size], **changes}))
