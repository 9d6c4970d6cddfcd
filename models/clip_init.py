"""Start from the weights of a CLIP model, as the original does.

Both towers start from CLIP, their temperature too. CLIP's vision blocks fill the patch blocks and then the center
blocks; the aggregation, the reconstruction blocks and the decoder are new and keep their random start. Beyond the
original, position tables and patch embeddings of other grids and patch sizes are resampled.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from timm.layers import resample_patch_embed
from torch import Tensor

from segclip.console import nearest
from segclip.models.config import ModelConfig
from segclip.models.names import own_name
from segclip.models.positions import resample_grid
from segclip.models.segclip import SegCLIP

__all__ = ["clip_tensors", "load_clip", "released_name_of_clip", "start_from_clip"]


def start_from_clip(model: SegCLIP) -> None:
    """Load the weights that ``model.config.init_from`` names through open_clip, in place; nothing where it is null.

    They come from open_clip's cache or are downloaded.

    Raises:
        ValueError: open_clip knows no such weights, or they are of another size.
    """
    import open_clip

    name = model.config.init_from
    if name is None:
        return
    architecture, tag = _known(name)
    clip = open_clip.create_model(architecture, pretrained=tag, require_pretrained=True)
    if type(clip.transformer.resblocks[0].mlp.gelu).__name__ != "QuickGELU":
        warnings.warn(
            f"{name} was trained with exact GELU, but SegCLIP computes QuickGELU: choose weights trained with "
            "QuickGELU, or expect a worse start",
            stacklevel=2,
        )
    load_clip(model, clip.state_dict(), name)


def load_clip(model: SegCLIP, clip: Mapping[str, Tensor], source: str) -> None:
    """Copy a CLIP state dict into a network, in place; ``source`` names it in messages. Errors: see above."""
    tensors = clip_tensors(clip, model.config)
    own = model.state_dict()
    wrong = [
        f"{name} is {list(tensor.shape)}, the network has {list(own[name].shape) if name in own else 'none'}"
        for name, tensor in tensors.items()
        if name not in own or tensor.shape != own[name].shape
    ]
    expected = [name for name in own if name.startswith(("text.", "logit_scale")) or _in_clip(name)]
    wrong += [f"{name} is not there" for name in expected if name not in tensors]
    if wrong:
        shown = "; ".join(wrong[:4]) + (f"; and {len(wrong) - 4} more" if len(wrong) > 4 else "")
        raise ValueError(f"the network can not start from {source}, its sizes differ: {shown}")
    model.load_state_dict(tensors, strict=False)


def clip_tensors(clip: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The tensors of a CLIP state dict under our names, resampled to the grid and patch size of ``config``.

    Entries that are no parameters of CLIP's two transformers are left out.
    """
    tensors: dict[str, Tensor] = {}
    for key, tensor in clip.items():
        released = released_name_of_clip(key, config.first_stage_layers)
        name = own_name(released) if released is not None else None
        if name is not None:
            tensors[name] = tensor.detach().float()
    _resample(tensors, config)
    return tensors


def released_name_of_clip(key: str, first_stage_layers: int) -> str | None:
    """The name a CLIP parameter has in a released SegCLIP checkpoint; None for entries that are no parameters."""
    if key in ("input_resolution", "context_length", "vocab_size"):
        return None
    blocks = "visual.transformer.resblocks."
    if not key.startswith(blocks):
        return f"clip.{key}"
    number, rest = key.removeprefix(blocks).split(".", 1)
    if int(number) < first_stage_layers:
        return f"clip.visual.transformer.layers0.{number}.{rest}"
    return f"clip.visual.transformer.layers2.{int(number) - first_stage_layers}.{rest}"


def _resample(tensors: dict[str, Tensor], config: ModelConfig) -> None:
    patches = tensors.get("vision.patch_embed.proj.weight")
    if patches is not None and patches.shape[-1] != config.patch_size:
        size = [config.patch_size, config.patch_size]
        tensors["vision.patch_embed.proj.weight"] = resample_patch_embed(patches, size)
    table = tensors.get("vision.positional_embedding")
    if table is not None:
        side = round((table.shape[0] - 1) ** 0.5)
        tensors["vision.positional_embedding"] = resample_grid(table, (side, side), config.grid)
    words = tensors.get("text.positional_embedding")
    if words is not None and words.shape[0] > config.context_length:
        tensors["text.positional_embedding"] = words[: config.context_length]


def _in_clip(name: str) -> bool:
    new = ("vision.aggregation.", "vision.expansion.", "vision.reconstruction_blocks.")
    return name.startswith("vision.") and not name.startswith(new)


def _known(name: str) -> tuple[str, str]:
    """Architecture and tag of ``init_from``."""
    import open_clip

    known = [f"{architecture}/{tag}" for architecture, tag in open_clip.list_pretrained()]
    if name not in known:
        raise ValueError(
            f"init_from must be ARCHITECTURE/TAG as open_clip lists them, such as ViT-B-16/openai, "
            f"got {name!r}{nearest(name, known)}"
        )
    architecture, tag = name.split("/")
    return architecture, tag
