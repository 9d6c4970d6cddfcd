"""Networks from files and back: our export folder, and the checkpoints that SegCLIP's authors released.

Pickle files are read with ``weights_only=True`` alone: they can hold tensors and plain containers, never
code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from segclip.models.config import ModelConfig
from segclip.models.names import from_released, own_name
from segclip.models.segclip import SegCLIP

__all__ = ["CONFIG_FILE", "WEIGHTS_FILE", "export", "infer_config", "load", "load_tensors"]

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
# Heads of the original's text tower are this wide; tensors do not tell their number.
RELEASED_HEAD_WIDTH = 64
_SHOWN = 8


def load(path: str | Path, strict: bool = True, device: str | torch.device = "cpu") -> SegCLIP:
    """A network from our export folder or from a released checkpoint, in evaluation mode.

    Args:
        path: folder with ``model.safetensors`` and ``config.json``, or a released checkpoint file
            (``segclip.bin``), whose sizes are inferred from its tensors.
        strict: refuse missing and unexpected parameters; otherwise take those that fit by name. Shapes that
            differ are refused in either case.
        device: where to put the network.

    Raises:
        ValueError: not a checkpoint, or one that does not fit.
        FileNotFoundError: nothing there.
    """
    path = Path(path)
    if path.is_dir():
        config, tensors = _read_export(path)
    elif path.is_file():
        tensors = _read_released(path)
        config = infer_config(tensors)
        tensors = from_released(tensors)
    else:
        raise FileNotFoundError(
            f"no checkpoint at {path}: give an export folder ({WEIGHTS_FILE} and {CONFIG_FILE}) "
            "or a checkpoint file"
        )
    model = SegCLIP(config)
    load_tensors(model, tensors, strict=strict, source=str(path))
    return model.to(device).eval()


def load_tensors(model: SegCLIP, tensors: Mapping[str, Tensor], strict: bool, source: str) -> None:
    """Copy tensors under our names into a network; errors as in ``load``.

    Args:
        source: where they come from, for messages.
    """
    own = model.state_dict()
    wrong = [
        f"{name} is {list(tensor.shape)}, the network has {list(own[name].shape)}"
        for name, tensor in tensors.items()
        if name in own and tensor.shape != own[name].shape
    ]
    missing = [name for name in own if name not in tensors]
    unexpected = [name for name in tensors if name not in own]
    problems = [("different shapes", wrong)]
    if strict:
        problems += [("missing", missing), ("unexpected", unexpected)]
    found = [f"{len(names)} {what}: {_listed(names)}" for what, names in problems if names]
    if found:
        hint = "" if wrong else "; strict=False takes the parameters that fit by name"
        raise ValueError(f"{source} does not fit the network: {'; '.join(found)}{hint}")
    if len(missing) == len(own):
        raise ValueError(f"{source} holds none of the network's parameters; it holds {_listed(unexpected)}")
    model.load_state_dict(dict(tensors), strict=False)


def export(model: SegCLIP, folder: str | Path, card_fields: Mapping[str, Any] | None = None) -> Path:
    """Write a network to a folder that ``load`` reads.

    Args:
        model: any network of ours, with whole (not partitioned) parameters.
        folder: made if it is not there.
        card_fields: anything JSON can hold that belongs to the weights, kept in ``config.json`` beside the
            model.

    Returns:
        The folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()
    }
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    content = {
        "format": "segclip",
        "model": model.config.model_dump(mode="json"),
        "card": dict(card_fields or {}),
    }
    (folder / CONFIG_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return folder


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
                f"this is no SegCLIP checkpoint: it lacks {name}; it holds {_listed(list(tensors))}"
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
        "text_heads": max(text_width // RELEASED_HEAD_WIDTH, 1),
        "text_layers": blocks("clip.transformer.resblocks."),
        "context_length": context_length,
        "vocab_size": shape("clip.token_embedding.weight")[0],
        "decoder_depth": blocks("vis_mae_decoder.decoder_blocks."),
        "text_reconstruction": text_mask in tensors,
        "text_decoder_words": shape(text_mask)[1] if text_mask in tensors else context_length,
        "text_decoder_depth": blocks("seq_mae_decoder.decoder_blocks.") if text_mask in tensors else 3,
    }
    return ModelConfig(**sizes)


def _read_export(folder: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is no export folder: it has no {name}")
    try:
        content = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        config = ModelConfig.model_validate(content["model"])
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, KeyError, ValidationError) as error:
        raise ValueError(
            f"{folder / CONFIG_FILE} is not the configuration of a SegCLIP export: {error}"
        ) from error
    try:
        return config, load_file(folder / WEIGHTS_FILE)
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS_FILE} is not a safetensors file: {error}") from error


def _read_released(path: Path) -> dict[str, Tensor]:
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
    # Training checkpoints of the original keep the weights under a key, and a wrapper may have prefixed the
    # names.
    for key in ("model_state_dict", "state_dict", "model"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    tensors = {
        str(name).removeprefix("module."): value
        for name, value in content.items()
        if isinstance(value, Tensor)
    }
    if not any(own_name(name) for name in tensors):
        raise ValueError(
            f"{path} is no SegCLIP checkpoint: it holds {_listed([str(name) for name in content])}"
        )
    return tensors


def _listed(names: list[str]) -> str:
    if not names:
        return "nothing"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
