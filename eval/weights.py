"""The network of a command line's ``--checkpoint``, with what identifies it in a result."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segclip.eval.exports import find_export, is_training_checkpoint
from segclip.eval.protocol import protocol_names
from segclip.models.checkpoint import load
from segclip.models.files import CONFIG_FILE
from segclip.models.segclip import SegCLIP
from segclip.models.training_checkpoint import join_training_checkpoint

__all__ = ["LoadedModel", "default_protocol", "load_model", "pick_device", "weights_sha256"]


@dataclass(frozen=True)
class LoadedModel:
    """A network in evaluation mode, where it came from, and the card that was exported with it."""

    model: SegCLIP
    path: Path
    card: dict[str, Any] = field(default_factory=dict)


def pick_device(name: str = "auto") -> torch.device:
    """``cpu``, ``cuda``, ``cuda:1``, …; ``auto`` takes the accelerator there is, else the CPU.

    Raises:
        ValueError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"unknown device {name!r}; use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device {name!r} is not supported; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"there is no device {name!r} here; {torch.cuda.device_count()} CUDA devices are visible"
        )
    return device


def load_model(path: str | Path, device: str | torch.device = "cpu") -> LoadedModel:
    """Load what ``find_export`` finds; errors as there, in ``segclip.models.checkpoint.load`` and in
    ``segclip.models.training_checkpoint.join_training_checkpoint``.
    """
    found = find_export(path)
    if is_training_checkpoint(found):
        model = join_training_checkpoint(found)
        return LoadedModel(model.to(device), found, model.card)
    model = load(found, device=device)
    card: dict[str, Any] = {}
    if found.is_dir():
        content = json.loads((found / CONFIG_FILE).read_text(encoding="utf-8"))
        card = content.get("card") or {}
    return LoadedModel(model, found, card)


def default_protocol(card: dict[str, Any]) -> str:
    """The protocol named in an export's card, if it is one that comes with the package; else ``photo``."""
    named = card.get("protocol")
    return named if isinstance(named, str) and named in protocol_names() else "photo"


def weights_sha256(model: nn.Module) -> str:
    """Hash of all parameters and buffers with their names: the same for the same weights in any file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        assert isinstance(tensor, Tensor)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
