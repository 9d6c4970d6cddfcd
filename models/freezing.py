"""Which parameters the original keeps as they start.

Its rule counts vision blocks through both stages: with 12 blocks of which 10 are patch blocks, block 10 is
the first center block. New modules, the last norms and the projections always train.
"""

from __future__ import annotations

from segclip.models.config import ModelConfig

__all__ = ["frozen_names"]

# Frozen even with layers=-1.
_ALWAYS = ("vision.positional_embedding", "vision.patch_embed")
_EMBEDDINGS = (
    "vision.class_embedding",
    "vision.ln_pre",
    "text.positional_embedding",
    "text.token_embedding",
)


def frozen_names(config: ModelConfig, layers: int = 0, text_layers: int = 0) -> tuple[str, ...]:
    """Names, or beginnings of names up to a dot, of the parameters that do not train.

    Args:
        config: sizes of the network.
        layers: freeze the embeddings of both towers and the first ``layers`` blocks of each; -1 freezes only
            the patch embedding and the positions of the vision tower.
        text_layers: freeze at least this many text blocks.

    Raises:
        ValueError: more blocks than there are.
    """
    if not -1 <= layers <= config.vision_layers:
        raise ValueError(
            f"layers must be -1 to {config.vision_layers} (the number of vision blocks), got {layers}"
        )
    if not 0 <= text_layers <= config.text_layers:
        raise ValueError(
            f"text_layers must be 0 to {config.text_layers} (the number of text blocks), got {text_layers}"
        )
    first = config.first_stage_layers
    vision = [
        f"vision.patch_blocks.{number}" if number < first else f"vision.center_blocks.{number - first}"
        for number in range(max(layers, 0))
    ]
    text_count = min(max(layers, text_layers), config.text_layers)
    text = [f"text.transformer.resblocks.{number}" for number in range(text_count)]
    return (*_ALWAYS, *(_EMBEDDINGS if layers >= 0 else ()), *vision, *text)
