"""The network of a checkpoint that training wrote (``RUN/checkpoints/step-...``), in pieces from ZeRO stage 1 on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from segclip.console import UserError
from segclip.models.config import ModelConfig

if TYPE_CHECKING:
    from segclip.models.segclip import SegCLIP

__all__ = ["join_training_checkpoint"]

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

    from segclip.models.checkpoint import load_tensors
    from segclip.models.full_state import full_state
    from segclip.models.segclip import SegCLIP

    try:
        state = full_state(path, stage)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "deepspeed":
            raise
        raise UserError(
            f"{path} is in pieces (ZeRO stage {stage}), which DeepSpeed joins, and DeepSpeed is not installed here; "
            f"where it is, `segclip-export {path} --out DIR` makes an export that needs none"
        ) from error
    model = SegCLIP(config, load_init=False)
    shapes = {name: parameter.shape for name, parameter in model.state_dict().items()}
    # The engine trains scalars as tensors of one element.
    state = {name: value.reshape(shapes.get(name, value.shape)) for name, value in state.items()}
    load_tensors(model, state, strict=True, source=str(path))
    protocol = (settings.get("evaluation") or {}).get("protocol")
    model.card = {} if protocol is None else {"protocol": Path(str(protocol)).name}
    return model.eval()


def _settings(path: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load((path / _CONFIG).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path / _CONFIG} is not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path / _CONFIG} must hold a mapping of sections, not {type(settings).__name__}")
    return settings
