"""Names of parameters in released SegCLIP checkpoints and in ours.

The two sets of names are in one-to-one correspondence and the tensors have the same shapes, so a checkpoint
is converted by renaming alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

__all__ = ["from_released", "listed", "own_name", "released_name", "to_released"]

T = TypeVar("T")
_SHOWN = 8

# Inside a vision block: (ours, released).
_VISION_BLOCK = (
    ("attn.qkv.weight", "attn.in_proj_weight"),
    ("attn.qkv.bias", "attn.in_proj_bias"),
    ("attn.proj", "attn.out_proj"),
    ("norm1", "ln_1"),
    ("norm2", "ln_2"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
)
_CROSS_BLOCK = (
    ("attn", "attn"),
    ("norm_query", "ln_x"),
    ("norm_key", "ln_k"),
    ("norm_mlp", "ln_2"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
)
_DECODER = (
    ("mask_token", "mask_token"),
    ("positions", "decoder_pos_embed"),
    ("embed", "decoder_embed"),
    ("blocks", "decoder_blocks"),
    ("norm", "decoder_norm"),
    ("head", "decoder_pred"),
)
_TRANSFORMER = "clip.visual.transformer"
_SEMANTIC = f"{_TRANSFORMER}.semantic_layer2"


def _numbered(ours: str, released: str, inside: tuple[tuple[str, str], ...]) -> list[tuple[str, str]]:
    return [(f"{ours}.#.{own}", f"{released}.#.{theirs}") for own, theirs in inside]


# Beginnings of names, ours and released; '#' stands for a number.
_BEGINNINGS: list[tuple[str, str]] = [
    ("logit_scale", "clip.logit_scale"),
    ("text.positional_embedding", "clip.positional_embedding"),
    ("text.text_projection", "clip.text_projection"),
    ("text.token_embedding", "clip.token_embedding"),
    ("text.ln_final", "clip.ln_final"),
    ("text.transformer", "clip.transformer"),
    ("vision.class_embedding", "clip.visual.class_embedding"),
    ("vision.positional_embedding", "clip.visual.positional_embedding"),
    ("vision.projection", "clip.visual.proj"),
    ("vision.patch_embed.proj", "clip.visual.conv1"),
    ("vision.ln_pre", "clip.visual.ln_pre"),
    ("vision.ln_post", "clip.visual.ln_post"),
    *_numbered("vision.patch_blocks", f"{_TRANSFORMER}.layers0", _VISION_BLOCK),
    *_numbered("vision.center_blocks", f"{_TRANSFORMER}.layers2", _VISION_BLOCK),
    *_numbered("vision.reconstruction_blocks", f"{_TRANSFORMER}.layers_mae2", _VISION_BLOCK),
    *_numbered("vision.aggregation.cross_blocks", f"{_SEMANTIC}.cross_att", _CROSS_BLOCK),
    ("vision.aggregation.centers", f"{_SEMANTIC}.semantic_center"),
    ("vision.aggregation.norm_query", f"{_SEMANTIC}.cross_ln"),
    ("vision.aggregation.norm_patches", f"{_SEMANTIC}.norm"),
    ("vision.aggregation.key", f"{_SEMANTIC}.k_conv"),
    ("vision.aggregation.norm_key", f"{_SEMANTIC}.k_ln"),
    ("vision.aggregation.value", f"{_SEMANTIC}.v_conv"),
    ("vision.aggregation.norm_out", f"{_SEMANTIC}.proj_o.ln"),
    ("vision.aggregation.mlp", f"{_SEMANTIC}.proj_o.mlp"),
    ("vision.expansion.mix", f"{_TRANSFORMER}.reconstruct_layer2.rec_proj_a.a_fc"),
    *((f"decoder.{own}", f"vis_mae_decoder.{theirs}") for own, theirs in _DECODER),
    *((f"text_decoder.{own}", f"seq_mae_decoder.{theirs}") for own, theirs in _DECODER),
]


def _compile(source: str, target: str) -> tuple[re.Pattern[str], str]:
    pattern = re.escape(source).replace(r"\#", r"(\d+)")
    # A beginning ends at a dot or at the end of the name: 'norm' is not 'norm_key'.
    return re.compile(pattern + r"(?=\.|$)"), target.replace("#", r"\1")


_TO_RELEASED = [_compile(own, theirs) for own, theirs in _BEGINNINGS]
_TO_OWN = [_compile(theirs, own) for own, theirs in _BEGINNINGS]


def _translate(name: str, table: list[tuple[re.Pattern[str], str]]) -> str | None:
    for pattern, target in table:
        match = pattern.match(name)
        if match:
            return match.expand(target) + name[match.end() :]
    return None


def released_name(name: str) -> str:
    """The released name of one of our parameters.

    Raises:
        ValueError: no such parameter.
    """
    translated = _translate(name, _TO_RELEASED)
    if translated is None:
        raise ValueError(f"{name!r} is not the name of a parameter of SegCLIP")
    return translated


def own_name(name: str) -> str | None:
    """Our name of a released parameter; None for a name that is none."""
    return _translate(name, _TO_OWN)


def to_released(tensors: Mapping[str, T]) -> dict[str, T]:
    """A state dict of ours under released names."""
    return {released_name(name): tensor for name, tensor in tensors.items()}


def from_released(tensors: Mapping[str, T]) -> dict[str, T]:
    """A released state dict under our names; names that are none of its own stay as they are."""
    return {own_name(name) or name: tensor for name, tensor in tensors.items()}


def listed(names: list[str]) -> str:
    """Names for a message, the first few of many."""
    if not names:
        return "nothing"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
