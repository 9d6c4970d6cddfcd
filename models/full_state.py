"""Whole weights from the shards of a training checkpoint."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segclip.models.safe_pickles import check_pickles

__all__ = ["full_state"]


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
