"""From a sharded training checkpoint to one folder that ``segclip.load`` opens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segclip.models.checkpoint import export
from segclip.models.segclip import SegCLIP
from segclip.trainer.config import RunConfig

__all__ = ["export_checkpoint", "full_state"]


def export_checkpoint(checkpoint: Path, config: RunConfig, folder: Path) -> Path:
    """Write ``folder`` (``model.safetensors`` and ``config.json``) from the float32 weights of ``checkpoint``.

    Reads files only, so one process can do it while others wait.
    """
    model = SegCLIP(config.model)
    shapes = {name: parameter.shape for name, parameter in model.state_dict().items()}
    state = full_state(checkpoint, config.zero.stage)
    # The engine trains scalars as tensors of one element.
    model.load_state_dict(
        {name: value.reshape(shapes.get(name, value.shape)) for name, value in state.items()}
    )
    export(model, folder, {"run": config.name, "protocol": config.evaluation.protocol})
    return folder


def full_state(checkpoint: Path, stage: int) -> dict[str, Tensor]:
    """Float32 weights of every parameter, joined from the shards of all ranks."""
    state: dict[str, Tensor] = {}
    if stage < 3:
        # Whole on every rank. Below stage 2 the shards know nothing of frozen parameters.
        saved: dict[str, Any] = torch.load(
            checkpoint / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=True
        )
        state.update({name: value.float() for name, value in saved["module"].items()})
    if stage > 0:
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        joined = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
        state.update({name: value.detach().clone() for name, value in joined.items()})
    return state
