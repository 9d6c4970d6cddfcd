"""Networks from files: our export folder, the checkpoints of SegCLIP's authors and their code, CLIP's weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segclip.models.export_folder import read_export
from segclip.models.files import CONFIG_FILE, WEIGHTS_FILE
from segclip.models.names import from_released, listed
from segclip.models.released import infer_config, read_released
from segclip.models.segclip import SegCLIP

__all__ = ["load", "load_tensors"]


def load(path: str | Path, strict: bool = True, device: str | torch.device = "cpu") -> SegCLIP:
    """A network from our export folder, a checkpoint file of the original or CLIP's weights, in evaluation mode.

    Args:
        path: folder with ``model.safetensors`` and ``config.json``, or that of a run which holds such a folder,
            ``export``; or a file of the original: a released ``segclip.bin`` or a checkpoint that its training
            wrote (``pytorch_model.bin.N``), whose sizes are inferred from its tensors; or, where nothing of that
            name exists, what ``ModelConfig.init_from`` takes, such as ``ViT-B-16/openai`` (see
            ``segclip.models.pretrained``). A network from CLIP is for training: the parts that CLIP does not have
            are random, drawn from torch's global generator.
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
        config, card, tensors = read_export(of_run if (of_run / WEIGHTS_FILE).is_file() else path)
    elif path.is_file():
        tensors, known = read_released(path)
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
    found = [f"{len(names)} {what}: {listed(names)}" for what, names in problems if names]
    if found:
        hint = "" if wrong else "; strict=False takes the parameters that fit by name"
        raise ValueError(f"{source} does not fit the network: {'; '.join(found)}{hint}")
    if len(missing) == len(own):
        raise ValueError(f"{source} holds none of the network's parameters; it holds {listed(unexpected)}")
    model.load_state_dict(dict(tensors), strict=False)
