"""The network of a checkpoint that training wrote (``RUN/checkpoints/step-...``), in pieces from ZeRO stage 1 on."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError
from torch import Tensor

from segclip.console import UserError
from segclip.models.checkpoint import load_tensors
from segclip.models.config import ModelConfig
from segclip.models.safe_pickles import check_pickles
from segclip.models.segclip import SegCLIP

__all__ = ["full_state", "join_network", "join_training_checkpoint"]

_CONFIG = "config.yaml"


def join_training_checkpoint(path: str | Path) -> SegCLIP:
    """The network in float32 and evaluation mode, its pieces joined; its card names the protocol of the run's scores.

    Raises:
        ValueError: the checkpoint's settings cannot be read, a file would run code, or the weights do not fit.
        UserError: it is in pieces, which DeepSpeed joins, and DeepSpeed is not installed here.
    """
    path = Path(path)
    settings = _settings(path)
    try:
        config, stage = ModelConfig.model_validate(settings["model"]), int(settings["zero"]["stage"])
    except (KeyError, TypeError, ValueError) as error:
        what = error.errors()[0]["msg"] if isinstance(error, ValidationError) else repr(error)
        raise ValueError(f"{path / _CONFIG} does not describe a network ({what})") from error
    try:
        model = join_network(path, config, stage)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "deepspeed":
            raise
        raise UserError(
            f"{path} is in pieces (ZeRO stage {stage}), which DeepSpeed joins, and DeepSpeed is not installed here; "
            f"where it is, `segclip-export {path} --out DIR` makes an export that needs none"
        ) from error
    protocol = (settings.get("evaluation") or {}).get("protocol")
    model.card = {} if protocol is None else {"protocol": Path(str(protocol)).name}
    return model


def join_network(checkpoint: Path, config: ModelConfig, stage: int) -> SegCLIP:
    """The network of a checkpoint whose settings are known, in float32 and evaluation mode.

    Raises:
        ValueError: a file would run code, or the weights do not fit.
    """
    model = SegCLIP(config, load_init=False)
    shapes = {name: parameter.shape for name, parameter in model.state_dict().items()}
    # The engine trains scalars as tensors of one element.
    state = {
        name: value.reshape(shapes.get(name, value.shape))
        for name, value in full_state(checkpoint, stage).items()
    }
    load_tensors(model, state, strict=True, source=str(checkpoint))
    return model.eval()


def full_state(checkpoint: Path, stage: int) -> dict[str, Tensor]:
    """Float32 weights of every parameter, joined from the shards of all ranks.

    Raises:
        ValueError: a file would run code.
    """
    check_pickles(checkpoint)
    state: dict[str, Tensor] = {}
    if stage < 3:
        # Whole on every rank. Below stage 2 the shards know nothing of frozen parameters.
        saved: dict[str, Any] = torch.load(
            checkpoint / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=True
        )
        state.update({name: value.float() for name, value in saved["module"].items()})
    if stage > 0:
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        # It prints what it does, file by file; errors still come through.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            joined = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
        state.update({name: value.detach().clone() for name, value in joined.items()})
    return state


def _settings(path: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load((path / _CONFIG).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path / _CONFIG} is not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path / _CONFIG} must hold a mapping of sections, not {type(settings).__name__}")
    return settings
