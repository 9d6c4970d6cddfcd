"""Our export folder: ``model.safetensors``, ``config.json`` and a model card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from segclip.free_space import describe_unwritten
from segclip.models.card import model_card
from segclip.models.config import ModelConfig
from segclip.models.files import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE

if TYPE_CHECKING:
    from segclip.models.segclip import SegCLIP

__all__ = ["add_to_card", "export", "plain_tensors", "read_export", "write_network"]


def export(model: SegCLIP, folder: str | Path, card_fields: Mapping[str, Any] | None = None) -> Path:
    """Write a network to a folder that ``segclip.load`` reads.

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
    _write_config(folder, model.config, {**model.card, **(card_fields or {})})
    tensors, path = plain_tensors(model), folder / WEIGHTS_FILE
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
    _write_config(folder, config, {**card, **fields})
    _write_card(folder)


def read_export(folder: Path) -> tuple[ModelConfig, dict[str, Any], dict[str, Tensor]]:
    """Configuration, card and weights of a network.

    Raises:
        ValueError, FileNotFoundError: no export folder.
    """
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


def _write_config(folder: Path, config: ModelConfig, card: Mapping[str, Any]) -> None:
    content = {"format": "segclip", "model": config.for_others().model_dump(mode="json"), "card": card}
    (folder / CONFIG_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_card(folder: Path) -> None:
    (folder / CARD_FILE).write_text(model_card(*_read_config(folder)), encoding="utf-8")


def plain_tensors(model: SegCLIP) -> dict[str, Tensor]:
    """All parameters, on the CPU, in memory of their own."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
