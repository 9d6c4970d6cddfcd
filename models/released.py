"""Checkpoints of SegCLIP's authors and of their code: read, with their sizes, and written for it.

Pickle files are read with ``weights_only=True`` alone: they can hold tensors and plain containers, never code.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError
from torch import Tensor

from segclip.models.config import CLIP_MEAN, CLIP_STD, ModelConfig
from segclip.models.export_folder import plain_tensors
from segclip.models.files import CONFIG_FILE
from segclip.models.names import listed, own_name, to_released

if TYPE_CHECKING:
    from segclip.models.segclip import SegCLIP

__all__ = ["export_released", "infer_config", "read_released"]

# Heads of the original's text tower are this wide; tensors do not tell their number.
HEAD_WIDTH = 64
# Around the weights, and before their names, in checkpoints of training loops.
_WRAPPERS = ("model_state_dict", "state_dict", "model", "module")
_PREFIXES = ("module.", "_orig_mod.")
_RIDER = "segclip_config"


def export_released(model: SegCLIP, path: str | Path) -> list[str]:
    """Write a network to one file under the names of the original, whose code can load it; so can ``segclip.load``.

    The configuration rides along where the original does not look, so that ``segclip.load`` need not infer it.

    Returns:
        What the original's code would compute otherwise, a sentence each; empty if it computes the same.
    """
    tensors = OrderedDict(to_released(plain_tensors(model)))
    # torch keeps this table with a state dict, and reads no entry it does not know.
    tensors._metadata = {"": {"version": 1, _RIDER: model.config.for_others().model_dump_json()}}  # type: ignore[attr-defined]
    torch.save(tensors, path)
    return _unlike_original(model.config)


def infer_config(tensors: Mapping[str, Tensor]) -> ModelConfig:
    """Sizes of a network from the tensors of a released checkpoint (under released names).

    What tensors do not tell is taken as in the original: text heads of width 64, 8 decoder heads, 75 %
    masked, temperature 0.9.

    Raises:
        ValueError: a tensor that tells a size is not there.
    """

    def shape(name: str) -> tuple[int, ...]:
        if name not in tensors:
            raise ValueError(
                f"this is no SegCLIP checkpoint: it lacks {name}; it holds {listed(list(tensors))}"
            )
        return tuple(tensors[name].shape)

    def blocks(prefix: str) -> int:
        dots = prefix.count(".")
        numbers = {name.split(".")[dots] for name in tensors if name.startswith(prefix)}
        return len(numbers)

    transformer = "clip.visual.transformer"
    vision_width, _, patch_size, _ = shape("clip.visual.conv1.weight")
    patches = shape("clip.visual.positional_embedding")[0] - 1
    side = round(patches**0.5)
    if side * side != patches:
        raise ValueError(f"the checkpoint has positions for {patches} patches, which is not a square grid")
    text_width, embed_dim = shape("clip.text_projection")
    context_length = shape("clip.positional_embedding")[0]
    first_stage_layers = blocks(f"{transformer}.layers0.")
    text_mask = "seq_mae_decoder.decoder_pos_embed"
    sizes: dict[str, Any] = {
        "image_size": side * patch_size,
        "patch_size": patch_size,
        "vision_width": vision_width,
        # The grouped convolutions of the aggregation have a group for each head.
        "vision_heads": vision_width // shape(f"{transformer}.semantic_layer2.k_conv.weight")[1],
        "vision_layers": first_stage_layers + blocks(f"{transformer}.layers2."),
        "first_stage_layers": first_stage_layers,
        "centers": shape(f"{transformer}.semantic_layer2.semantic_center")[0],
        "center_layers": blocks(f"{transformer}.semantic_layer2.cross_att."),
        "embed_dim": embed_dim,
        "text_width": text_width,
        "text_heads": max(text_width // HEAD_WIDTH, 1),
        "text_layers": blocks("clip.transformer.resblocks."),
        "context_length": context_length,
        "vocab_size": shape("clip.token_embedding.weight")[0],
        "decoder_depth": blocks("vis_mae_decoder.decoder_blocks."),
        "text_reconstruction": text_mask in tensors,
        "text_decoder_words": shape(text_mask)[1] if text_mask in tensors else context_length,
        "text_decoder_depth": blocks("seq_mae_decoder.decoder_blocks.") if text_mask in tensors else 3,
    }
    return ModelConfig(**sizes)


def read_released(path: Path) -> tuple[dict[str, Tensor], ModelConfig | None]:
    """Tensors of a checkpoint file under released names, and their configuration if it was written with them.

    Raises:
        ValueError: it is no such checkpoint.
    """
    if path.suffix == ".safetensors":
        raise ValueError(
            f"{path} is a weights file alone: give the folder that holds it and its {CONFIG_FILE}"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a malformed pickle can make the reader fail in any way
        raise ValueError(
            f"{path} is not a readable checkpoint of plain tensors, and nothing else is read "
            f"({type(error).__name__}): is it complete, and is it a SegCLIP checkpoint?"
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a checkpoint's table of tensors")
    table = _unwrapped(content)
    tensors = {
        _bare(name): value
        for name, value in table.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }
    if not any(own_name(name) for name in tensors):
        held = listed([str(name) for name in table])
        if "optimizer_state_dict" in table or {"state", "param_groups"} <= set(table):
            raise ValueError(
                f"{path} holds the state of an optimiser, not of a network ({held}): give the file of weights "
                "beside it (pytorch_model.bin.N)"
            )
        if "vision.positional_embedding" in tensors:
            raise ValueError(
                f"{path} is part of a training checkpoint of this package: give the export folder of its run, "
                "or make one with segclip-export"
            )
        raise ValueError(f"{path} is no SegCLIP checkpoint: it holds {held}")
    return tensors, _riding_config(path, table)


def _unwrapped(content: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """The table of tensors inside the tables that training loops put around it."""
    for _ in range(len(_WRAPPERS)):
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    return content


def _bare(name: str) -> str:
    """A parameter's name without what data parallelism and ``torch.compile`` put before it."""
    while name.startswith(_PREFIXES):
        name = name[name.index(".") + 1 :]
    return name


def _riding_config(path: Path, table: Mapping[Any, Any]) -> ModelConfig | None:
    metadata = getattr(table, "_metadata", None)
    first = metadata.get("") if isinstance(metadata, Mapping) else None
    text = first.get(_RIDER) if isinstance(first, Mapping) else None
    if text is None:
        return None
    try:
        return ModelConfig.model_validate_json(text)
    except ValidationError as error:
        raise ValueError(f"{path} carries a configuration that does not read: {error}") from error


def _unlike_original(config: ModelConfig) -> list[str]:
    heads = (
        max(config.vision_width // HEAD_WIDTH, 1),
        max(config.text_width // HEAD_WIDTH, 1),
    )
    fixed: dict[str, Any] = {
        "quick_gelu": True,
        "ignore_empty_centers": False,
        "vision_layers": 12,
        "vision_heads": heads[0],
        "text_heads": heads[1],
        "decoder_heads": 8,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
    }
    return [
        f"{name} is {getattr(config, name)} here and always {value} in the original"
        for name, value in fixed.items()
        if getattr(config, name) != value
    ]
