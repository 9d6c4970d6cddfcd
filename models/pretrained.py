"""Start a network from CLIP: open_clip's models and tags, or a file in open_clip's format.

What starts from CLIP is the original's choice: embeddings, the text tower, temperature, last norm and
projection; of CLIP's vision blocks the first ``first_stage_layers`` become the patch blocks and the others
the center blocks. The aggregation, the reconstruction blocks and the decoder start at random.

Shape letters: C width, N = 1 + patches, T words.
"""

from __future__ import annotations

import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import open_clip
import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from pydantic import ValidationError
from timm.layers.patch_embed import resample_patch_embed
from torch import Tensor

from segclip.console import UserError, nearest, one_line
from segclip.models.config import LOCAL, ModelConfig
from segclip.models.names import own_name
from segclip.models.positions import resample_grid

if TYPE_CHECKING:
    from segclip.models.segclip import SegCLIP

__all__ = ["clip_config", "clip_tensors", "load_clip", "names_clip", "reference_key"]

_VISION_BLOCK = re.compile(r"visual\.transformer\.resblocks\.(\d+)\.")
# What may differ between CLIP and the network, or changes nothing in a CLIP that is loaded.
_FREE_VISION = {"image_size", "patch_size", "layers", "width", "head_width", "patch_dropout", "output_tokens"}
_FREE_TEXT = {"context_length", "vocab_size", "width", "heads", "layers", "output_tokens", "eos_id", "pad_id"}


@dataclass(frozen=True)
class _Source:
    """A CLIP model before any of its weights is read."""

    name: str
    """As ``init_from`` names it."""
    model: str
    """What open_clip calls the architecture."""
    architecture: dict[str, Any]
    """open_clip's description of it."""
    quick_gelu: bool
    """Which activation the weights were trained with."""
    weights: Path | None
    """File of weights; None if they are yet to be found."""
    tag: dict[str, Any]
    """open_clip's entry for the tag; empty for a file or folder."""


def load_clip(model: SegCLIP, init_from: str) -> list[str]:
    """Replace the start values of a network by CLIP's, wherever CLIP has them.

    Args:
        model: of the widths, depths and heads of the CLIP model. Its patch size, grid and number of words may
            differ: patches and positions are resampled bicubically, text positions are cut.
        init_from: ``MODEL/TAG`` with a tag of open_clip (``ViT-B-16/openai``), downloaded if it is not in the
            cache; ``MODEL/FILE`` with a file of weights in open_clip's format (``.safetensors``, ``.bin`` or
            ``.pt``); or ``local-dir:FOLDER`` with weights and ``open_clip_config.json``.

    Returns:
        Names of the parameters that now hold CLIP's values.

    Raises:
        ValueError: no such model, tag or file; a model of another architecture, width, depth, activation or
            normalisation; a file that does not hold its weights.
        UserError: the download failed.
    """
    source = _find(init_from)
    _check_fits(source, model.config)
    weights = source.weights if source.weights is not None else _download(source)
    tensors = clip_tensors(_read(source, weights), model.config)
    own = model.state_dict()
    wrong = [
        f"{name} is {list(tensor.shape)}, the network has {list(own[name].shape)}"
        for name, tensor in tensors.items()
        if own[name].shape != tensor.shape
    ]
    if wrong:
        raise ValueError(f"{init_from} does not fit the network: {'; '.join(wrong)}")
    model.load_state_dict(tensors, strict=False)
    return list(tensors)


def names_clip(name: str) -> bool:
    """Whether a name that is no path is meant for CLIP, as ``init_from`` names it, misspelt or not."""
    if name.startswith((LOCAL, "hf-hub:")):
        return True
    model, known = name.partition("/")[0], open_clip.list_models()
    return model in known or bool(nearest(model, known))


def clip_config(init_from: str) -> ModelConfig:
    """The configuration of a network that takes over a CLIP model whole: its sizes, activation and normalisation.

    What CLIP does not tell is the paper's; of the blocks of the vision tower the last sixth, two of ViT-B/16's
    twelve, work on centers.

    Args:
        init_from: as in ``load_clip``; also what the configuration starts from.

    Raises:
        ValueError: no such model, tag or file, or a model of another architecture.
    """
    source = _find(init_from)
    sizes = _sizes(source)
    layers = sizes["vision_layers"]
    colours = {"image_mean": source.tag.get("mean"), "image_std": source.tag.get("std")}
    try:
        return ModelConfig(
            **sizes,
            first_stage_layers=layers - max(round(layers / 6), 1),
            quick_gelu=source.quick_gelu,
            init_from=init_from,
            **{name: tuple(value) for name, value in colours.items() if value is not None},
        )
    except ValidationError as error:
        reasons = "; ".join(item["msg"].removeprefix("Value error, ") for item in error.errors())
        raise ValueError(f"no network can start from {init_from}: {reasons}") from error


def reference_key(key: str, first_stage_layers: int) -> str:
    """The released SegCLIP's name of a parameter of CLIP (in OpenAI's and open_clip's naming)."""
    match = _VISION_BLOCK.match(key)
    if match is None:
        return f"clip.{key}"
    number, rest = int(match[1]), key[match.end() :]
    stage, number = (
        ("layers0", number) if number < first_stage_layers else ("layers2", number - first_stage_layers)
    )
    return f"clip.visual.transformer.{stage}.{number}.{rest}"


def clip_tensors(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """CLIP's state dict under our names, in the shapes of a network of the given configuration.

    Args:
        state: as of open_clip's ``CLIP``.

    Raises:
        ValueError: parameters that the network has no place for.
    """
    tensors = {}
    strangers = []
    for key, tensor in state.items():
        name = own_name(reference_key(key, config.first_stage_layers))
        if name is None:
            strangers.append(key)
        else:
            tensors[name] = _adapted(name, tensor, config).to(torch.float32)
    if strangers:
        raise ValueError(
            f"CLIP has {len(strangers)} parameters that the network has no place for: {', '.join(strangers[:8])}"
        )
    return tensors


def _adapted(name: str, tensor: Tensor, config: ModelConfig) -> Tensor:
    if name == "vision.positional_embedding":
        side = round((tensor.shape[0] - 1) ** 0.5)
        return resample_grid(tensor, (side, side), config.grid)
    if name == "vision.patch_embed.proj.weight" and tensor.shape[-1] != config.patch_size:
        # So that a patch scaled to the new size gives the token it gave before, as nearly as can be.
        size = [config.patch_size, config.patch_size]
        resized: Tensor = resample_patch_embed(tensor.float(), size)
        return resized
    if name == "text.positional_embedding":
        return tensor[: config.context_length]
    if name == "logit_scale":
        return tensor.reshape(())
    return tensor


def _find(init_from: str) -> _Source:
    """What ``init_from`` names, without reading weights; errors as in ``load_clip``."""
    if init_from.startswith(LOCAL):
        return _find_folder(init_from)
    if init_from.startswith("hf-hub:"):
        raise ValueError(
            f"init_from {init_from!r}: download the repository (`hf download ...`) and give its folder as "
            f"{LOCAL}FOLDER"
        )
    model, slash, tag = init_from.partition("/")
    if not slash or not model or not tag:
        raise ValueError(
            f"init_from is {init_from!r}; it must be MODEL/TAG of open_clip such as ViT-B-16/openai, "
            f"MODEL/FILE with a file of weights, or {LOCAL}FOLDER"
        )
    known = open_clip.list_models()
    if model not in known:
        # OpenAI writes ViT-B/16 for what open_clip calls ViT-B-16.
        meant = init_from.replace("/", "-")
        hint = f" (did you mean {meant}/openai?)" if meant in known else nearest(model, known)
        raise ValueError(f"init_from {init_from!r}: open_clip has no model {model!r}{hint}")
    architecture = open_clip.get_model_config(model)
    entry = open_clip.get_pretrained_cfg(model, tag)
    if entry:
        # A model's own entry says how open_clip would compute; the tag's says how its weights were trained.
        return _Source(init_from, model, architecture, bool(entry.get("quick_gelu")), None, entry)
    if Path(tag).is_file():
        quick = bool(architecture.get("quick_gelu"))
        return _Source(init_from, model, architecture, quick, Path(tag), {})
    tags = open_clip.list_pretrained_tags_by_model(model)
    raise ValueError(
        f"init_from {init_from!r}: {tag!r} is neither a tag of {model}{nearest(tag, tags)} nor a file; "
        f"its tags are {', '.join(tags) or 'none'}"
    )


def _find_folder(init_from: str) -> _Source:
    folder = Path(init_from.removeprefix(LOCAL))
    path = folder / "open_clip_config.json"
    if not path.is_file():
        raise ValueError(f"init_from {init_from!r}: there is no {path}")
    try:
        architecture = json.loads(path.read_text(encoding="utf-8"))["model_cfg"]
        quick = bool(architecture.get("quick_gelu"))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a configuration of open_clip: {one_line(error)}") from error
    return _Source(init_from, LOCAL + str(folder), architecture, quick, folder, {})


def _check_fits(source: _Source, config: ModelConfig) -> None:
    """Compare architectures before anything is downloaded."""
    sizes = _sizes(source)
    free = ("image_size", "patch_size", "context_length")
    expected = {name: value for name, value in sizes.items() if name not in free}
    wrong = [
        f"{name} is {getattr(config, name)}, there it is {value}"
        for name, value in expected.items()
        if getattr(config, name) != value
    ]
    if config.context_length > sizes["context_length"]:
        wrong.append(
            f"context_length is {config.context_length}, more than the {sizes['context_length']} words it knows"
        )
    if wrong:
        raise ValueError(f"the network can not start from {source.name}: {'; '.join(wrong)}")
    if source.quick_gelu != config.quick_gelu:
        trained, needed = ("QuickGELU", "true") if source.quick_gelu else ("GELU", "false")
        hint = ""
        if source.weights is not None and not source.model.startswith(LOCAL) and not source.quick_gelu:
            better = f"{source.model}-quickgelu/{source.weights}"
            hint = f" (if the file holds weights trained with QuickGELU, as OpenAI's were, name it {better})"
        raise ValueError(
            f"{source.name} was trained with {trained}, and the network is set to compute the other one: "
            f"set model.quick_gelu to {needed}{hint}"
        )
    for name, there in (("image_mean", source.tag.get("mean")), ("image_std", source.tag.get("std"))):
        ours = getattr(config, name)
        if there is not None and any(abs(a - b) > 1e-4 for a, b in zip(ours, there, strict=True)):
            raise ValueError(
                f"{source.name} was trained on images normalised otherwise: set model.{name} to {list(there)}, "
                f"not {list(ours)}"
            )


def _sizes(source: _Source) -> dict[str, Any]:
    """What the architecture fixes of a configuration.

    Raises:
        ValueError: it is not CLIP's.
    """
    vision, text = source.architecture.get("vision_cfg", {}), source.architecture.get("text_cfg", {})
    if vision.get("timm_model_name") or isinstance(vision.get("layers"), (list, tuple)):
        raise ValueError(
            f"{source.name} is not CLIP's vision transformer; take a ViT such as ViT-B-16/openai"
        )
    strange = _strange(vision, CLIPVisionCfg, _FREE_VISION) + _strange(text, CLIPTextCfg, _FREE_TEXT)
    strange += [
        key for key in ("custom_text", "multimodal_cfg", "init_logit_bias") if source.architecture.get(key)
    ]
    if strange:
        raise ValueError(
            f"{source.name} differs from CLIP in {', '.join(strange)}, which this network can not compute; "
            "take another model, such as ViT-B-16/openai"
        )
    theirs = CLIPVisionCfg(**vision), CLIPTextCfg(**text)
    return {
        "image_size": theirs[0].image_size,
        "patch_size": theirs[0].patch_size,
        "vision_width": theirs[0].width,
        "vision_layers": theirs[0].layers,
        "vision_heads": theirs[0].width // theirs[0].head_width,
        "embed_dim": source.architecture["embed_dim"],
        "text_width": theirs[1].width,
        "text_layers": theirs[1].layers,
        "text_heads": theirs[1].heads,
        "context_length": theirs[1].context_length,
        "vocab_size": theirs[1].vocab_size,
    }


def _strange(given: Mapping[str, Any], kind: Any, free: set[str]) -> list[str]:
    """Settings of an architecture that are not CLIP's own."""
    usual = asdict(kind())
    return [
        key for key, value in given.items() if key not in free and (key not in usual or value != usual[key])
    ]


def _download(source: _Source) -> Path:
    try:
        path = open_clip.download_pretrained(source.tag)
    except Exception as error:  # of the network, the hub or the disk, in many types
        hub, url = source.tag.get("hf_hub", "").rstrip("/"), source.tag.get("url")
        where = f"https://huggingface.co/{hub}" if hub else url
        quick = "-quickgelu" if source.quick_gelu and not source.architecture.get("quick_gelu") else ""
        raise UserError(
            f"the weights of {source.name} could not be downloaded from {where} ({one_line(error)}). "
            "Without a connection, fetch open_clip_model.safetensors from there on another machine and give "
            f"the file: init_from: {source.model}{quick}/PATH/open_clip_model.safetensors"
        ) from error
    return Path(path)


def _read(source: _Source, weights: Path) -> dict[str, Tensor]:
    """All tensors of a CLIP model, checked by open_clip to be complete."""
    if weights.is_file() and _is_torchscript(weights):
        raise ValueError(
            f"{weights} is a TorchScript program, and programs are not run to read weights: take the same "
            "weights as open_clip_model.safetensors from Hugging Face"
        )
    try:
        # open_clip draws start values first; the random state of the run must not depend on that.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            clip = open_clip.create_model(
                source.model,
                pretrained=None if source.model.startswith(LOCAL) else str(weights),
                require_pretrained=True,
                weights_only=True,
            )
    except Exception as error:  # malformed files make the readers fail in any way
        raise ValueError(
            f"{weights} does not hold the weights of {source.name} ({type(error).__name__}: {_short(one_line(error))})"
        ) from error
    state: dict[str, Tensor] = clip.state_dict()
    return state


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _short(text: str) -> str:
    return text if len(text) <= 400 else text[:397] + "..."
