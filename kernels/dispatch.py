"""Which implementation an operation runs: its Triton kernels or plain torch.

The environment variable ``SEGCLIP_KERNELS`` chooses: ``auto`` (the default) takes the kernels on GPUs that can run
them and plain torch elsewhere; ``torch`` always takes plain torch; ``triton`` also takes the kernels on the CPU
where Triton interprets them (``TRITON_INTERPRET=1``), which is for tests. Where kernels are wanted and can not run,
plain torch stands in, with one warning.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings

import torch
from torch import Tensor

__all__ = ["CHOICES", "use_triton"]

CHOICES = ("auto", "triton", "torch")
KERNEL_TYPES = (torch.float32, torch.bfloat16)
LOWEST_CAPABILITY = (8, 0)
"""Ampere: the first generation whose tensor cores take bfloat16."""


def use_triton(tensor: Tensor) -> bool:
    """Whether an operation on ``tensor`` (a floating-point argument) runs its Triton kernels.

    Raises:
        ValueError: ``SEGCLIP_KERNELS`` is none of the choices.
    """
    choice = os.environ.get("SEGCLIP_KERNELS", "auto")
    if choice not in CHOICES:
        raise ValueError(f"SEGCLIP_KERNELS must be one of {', '.join(CHOICES)}, got {choice!r}")
    if choice == "torch" or (choice == "auto" and tensor.device.type == "cpu"):
        return False
    obstacle = _obstacle(tensor.device, tensor.dtype)
    if obstacle is not None:
        _warn(obstacle)
    return obstacle is None


@functools.cache
def _obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why kernels can not run there; None if they can."""
    # float64 is for checks of the mathematics: its users want the definition itself.
    if dtype not in KERNEL_TYPES:
        return f"they take float32 and bfloat16, not {dtype}"
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if device.type == "cpu":
        from triton import knobs

        interpreted = bool(knobs.runtime.interpret)
        return None if interpreted else "on a CPU they only run interpreted, with TRITON_INTERPRET=1"
    if device.type != "cuda":
        return f"Triton does not support the device {device.type}"
    # AMD's devices call themselves cuda as well, and their capabilities start at 9.0.
    capability = torch.cuda.get_device_capability(device)
    if capability < LOWEST_CAPABILITY:
        return f"{torch.cuda.get_device_name(device)} has capability {capability}, below {LOWEST_CAPABILITY}"
    return None


@functools.cache
def _warn(obstacle: str) -> None:
    """Once a process for each reason."""
    warnings.warn(
        f"SegCLIP's Triton kernels do not run here: {obstacle}. Plain torch takes their place: same numbers, slower",
        stacklevel=3,
    )
