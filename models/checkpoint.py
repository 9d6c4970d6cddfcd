"""Networks from files and back: our export folder, the checkpoints of SegCLIP's authors and their code, CLIP's weights.

Pickle files are read with ``weights_only=True`` alone: they can hold tensors and plain containers, never
code.
"""

from __future__ import annotations

import json
import shutil
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from segclip.free_space import describe_unwritten
from segclip.models.card import model_card
from segclip.models.config import CLIP_MEAN, CLIP_STD, ModelConfig
from segclip.models.names import from_released, own_name, to_released
from segclip.models.segclip import SegCLIP

__all__ = [
    "CARD_FILE",
    "CONFIG_FILE",
    "RELEASED_FILE",
    "WEIGHTS_FILE",
    "add_to_card",
    "export",
    "export_released",
    "infer_config",
    "load",
    "load_tensors",
    "write_network",
]

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
CARD_FILE = "README.md"
RELEASED_FILE = "segclip.bin"
# Heads of the original's text tower are this wide; tensors do not tell their number.
RELEASED_HEAD_WIDTH = 64
# Around the weights, and before their names, in checkpoints of training loops.
_WRAPPERS = ("model_state_dict", "state_dict", "model", "module")
_PREFIXES = ("module.", "_orig_mod.")
_RIDER = "segclip_config"
_SHOWN = 8


def load(path: str | Path, strict: bool = True, device: str | torch.device = "cpu") -> SegCLIP:
    """A network from our export folder, a checkpoint file of the original or CLIP's weights, in evaluation mode.

    Args:
        path: folder with ``model.safetensors`` and ``config.json``, or that of a run which holds such a folder,
            ``export``; or a file of the original: a released
            ``segclip.bin`` or a checkpoint that its training wrote (``pytorch_model.bin.N``), whose sizes are
            inferred from its tensors; or, where nothing of that name exists, what ``ModelConfig.init_from``
            takes, such as ``ViT-B-16/openai`` (see ``segclip.models.pretrained``). A network from CLIP is for
            training: the parts that CLIP does not have are random, drawn from torch's global generator.
        strict: refuse missing and unexpected parameters; otherwise take those that fit by name. Shapes that
            differ are refused in either case.
        device: where to put the network.

    Raises:
        ValueError: not a checkpoint, or one that does not fit; no such model or tag of CLIP.
        FileNotFoundError: nothing there.
        UserError: CLIP's weights could not be downloaded.
    """
    name, path = str(path), Path(path)
    card: dict[str, Any] = {}
    if path.is_dir():
        of_run = path / "export"
        config, card, tensors = _read_export(of_run if (of_run / WEIGHTS_FILE).is_file() else path)
    elif path.is_file():
        tensors, known = _read_released(path)
        config = known or infer_config(tensors)
        tensors = from_released(tensors)
    else:
        from segclip.models.pretrained import clip_config, names_clip  # imports much of open_clip

        if names_clip(name):
            return SegCLIP(clip_config(name)).to(device).eval()
        raise FileNotFoundError(
            f"no checkpoint at {path}: give an export folder ({WEIGHTS_FILE} and {CONFIG_FILE}), "
            "a checkpoint file, or MODEL/TAG of open_clip such as ViT-B-16/openai"
        )
    model = SegCLIP(config, load_init=False)
    model.card = card
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
        card_fields: what is known of the weights, as JSON can hold it, beside what ``model.card`` says: kept
            in ``config.json`` and told in the model card; see ``segclip.models.card`` for the fields it
            knows.

    Returns:
        The folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_network(model, folder, card_fields)
    _write_card(folder)
    return folder


def write_network(model: SegCLIP, folder: Path, card_fields: Mapping[str, Any] | None = None) -> None:
    """Write weights and configuration, as ``export`` does, and no model card.

    Raises:
        OSError: the disk does not take them.
    """
    content = {
        "format": "segclip",
        "model": model.config.for_others().model_dump(mode="json"),
        "card": {**model.card, **(card_fields or {})},
    }
    (folder / CONFIG_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    tensors, path = _plain_tensors(model), folder / WEIGHTS_FILE
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        size = sum(tensor.nbytes for tensor in tensors.values())
        raise OSError(describe_unwritten(error, path, size)) from error
    # safetensors makes files that their owner alone can read.
    shutil.copymode(folder / CONFIG_FILE, folder / WEIGHTS_FILE)


def add_to_card(folder: str | Path, fields: Mapping[str, Any]) -> None:
    """Add what became known of exported weights (scores, for example) to their configuration and model card.

    Raises:
        ValueError, FileNotFoundError: no export folder.
    """
    folder = Path(folder)
    config, card = _read_config(folder)
    content = {
        "format": "segclip",
        "model": config.for_others().model_dump(mode="json"),
        "card": {**card, **fields},
    }
    (folder / CONFIG_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    _write_card(folder)


def export_released(model: SegCLIP, path: str | Path) -> list[str]:
    """Write a network to one file under the names of the original, whose code can load it; so can ``load``.

    The configuration rides along where the original does not look, so that ``load`` need not infer it.

    Returns:
        What the original's code would compute otherwise, a sentence each; empty if it computes the same.
    """
    tensors = OrderedDict(to_released(_plain_tensors(model)))
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


def _read_export(folder: Path) -> tuple[ModelConfig, dict[str, Any], dict[str, Tensor]]:
    config, card = _read_config(folder)
    try:
        return config, card, load_file(folder / WEIGHTS_FILE)
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS_FILE} is not a safetensors file: {error}") from error


def _read_config(folder: Path) -> tuple[ModelConfig, dict[str, Any]]:
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} is no export folder: it has no {name}; training writes one, export/, into its run folder, "
                "and segclip-export makes one of any checkpoint"
            )
    try:
        content = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        return ModelConfig.model_validate(content["model"]), dict(content.get("card") or {})
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, ValueError, KeyError) as error:
        raise ValueError(
            f"{folder / CONFIG_FILE} is not the configuration of a SegCLIP export: {error}"
        ) from error


def _write_card(folder: Path) -> None:
    (folder / CARD_FILE).write_text(model_card(*_read_config(folder)), encoding="utf-8")


def _plain_tensors(model: SegCLIP) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}


def _unlike_original(config: ModelConfig) -> list[str]:
    heads = (
        max(config.vision_width // RELEASED_HEAD_WIDTH, 1),
        max(config.text_width // RELEASED_HEAD_WIDTH, 1),
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


def _read_released(path: Path) -> tuple[dict[str, Tensor], ModelConfig | None]:
    """Tensors of a checkpoint file under released names, and their configuration if it was written with them."""
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
        held = _listed([str(name) for name in table])
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


def _listed(names: list[str]) -> str:
    if not names:
        return "nothing"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
