"""After a load the configuration holds, and what training has found is kept."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import CreateLossScaler

from segclip.trainer.checkpoints.reconfigured import keep_settings, settings_of


def engine(lr: float, betas: tuple[float, float], clip: float, window: int, hysteresis: int) -> Any:
    """As far as settings go; the tests with real ranks have DeepSpeed's own."""
    groups = [
        {"params": [torch.nn.Parameter(torch.ones(1))], "name": name, "base_lr": lr, "weight_decay": 0.1}
        for name in ("pretrained", "new")
    ]
    optimizer: Any = torch.optim.AdamW(groups, lr=lr, betas=betas)
    optimizer.clip_grad = clip
    scale = {
        "init_scale": 4,
        "scale_window": window,
        "min_scale": 1,
        "delayed_shift": hysteresis,
        "consecutive_hysteresis": False,
    }
    optimizer.loss_scaler = CreateLossScaler(torch.float16, 1.0, True, scale)
    return SimpleNamespace(optimizer=optimizer)


def test_settings_stay_and_state_is_loaded() -> None:
    before, now = engine(1e-3, (0.9, 0.98), 1.0, 100, 4), engine(5e-4, (0.8, 0.9), 0.5, 50, 2)
    before.optimizer.loss_scaler.cur_scale = 2.0**9
    for group in before.optimizer.param_groups:
        group["step"] = 7  # where DeepSpeed's fused Adam counts
    expected = settings_of(now)
    with keep_settings(now):
        # As DeepSpeed loads.
        for group, saved in zip(now.optimizer.param_groups, before.optimizer.param_groups, strict=True):
            group.update({key: value for key, value in saved.items() if key != "params"})
        now.optimizer.clip_grad, now.optimizer.loss_scaler = 1.0, before.optimizer.loss_scaler
    assert settings_of(now) == expected
    assert [group["betas"] for group in expected] == [(0.8, 0.9)] * 2
    assert [group["step"] for group in now.optimizer.param_groups] == [7, 7]
    scaler = now.optimizer.loss_scaler
    assert (now.optimizer.clip_grad, scaler.scale_window, scaler.delayed_shift) == (0.5, 50, 2)
    assert (scaler.cur_scale, scaler.cur_hysteresis) == (2.0**9, 2)


def test_other_groups_are_refused() -> None:
    now = engine(5e-4, (0.8, 0.9), 0.5, 50, 2)
    with (
        pytest.raises(
            ValueError, match="has the parameter groups pretrained, old, and the optimiser pretrained, new"
        ),
        keep_settings(now),
    ):
        now.optimizer.param_groups[1]["name"] = "old"
