"""A checkpoint loaded into a run whose settings have changed.

DeepSpeed keeps in a checkpoint not only what training has found (weights, moments, counts of steps, the loss scale)
but also what a user has set: every group's betas, eps, weight decay and base rate, the norm at which gradients are
clipped, the window and the floor of the loss scale. It puts all of them back when it loads, over what the configuration
of the run that goes on says. Here the configuration wins.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["keep_settings", "settings_of"]

# Of a group, what is no setting: its parameters and, with DeepSpeed's fused Adam, the count of steps made.
STATE = ("params", "step")
# Of DeepSpeed's dynamic loss scale.
SCALER_SETTINGS = ("scale_window", "min_scale", "delayed_shift", "consecutive_hysteresis")


def settings_of(engine: Any) -> list[dict[str, Any]]:
    """What the configuration says of each group of the optimiser."""
    return [
        {key: value for key, value in group.items() if key not in STATE}
        for group in engine.optimizer.param_groups
    ]


@contextmanager
def keep_settings(engine: Any) -> Iterator[None]:
    """What the engine is set to before the context, it is set to after it, whatever was loaded within.

    Raises:
        ValueError: what was loaded has other groups.
    """
    optimizer = engine.optimizer
    groups = settings_of(engine)
    clip = getattr(optimizer, "clip_grad", None)
    scaler = vars(getattr(optimizer, "loss_scaler", object))
    scaler = {key: scaler[key] for key in SCALER_SETTINGS if key in scaler}
    yield
    names, loaded = ([group["name"] for group in each] for each in (groups, optimizer.param_groups))
    if names != loaded:
        raise ValueError(
            f"the checkpoint has the parameter groups {', '.join(loaded)}, and the optimiser {', '.join(names)}: "
            "undo changes of the optimizer section to resume, or give another run_dir to start anew"
        )
    for group, settings in zip(optimizer.param_groups, groups, strict=True):
        group.update(settings)
    if clip is not None:
        optimizer.clip_grad = clip
    for key, value in scaler.items():
        setattr(optimizer.loss_scaler, key, value)
    if "delayed_shift" in scaler:
        # Overflows that are still forgiven, never more than the setting.
        optimizer.loss_scaler.cur_hysteresis = min(
            optimizer.loss_scaler.cur_hysteresis, scaler["delayed_shift"]
        )
