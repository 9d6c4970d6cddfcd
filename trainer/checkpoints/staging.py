"""What a checkpoint holds, copied into host memory: the copy is written while training goes on.

Imports DeepSpeed, which takes seconds.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
from torch import Tensor

__all__ = ["StagingEngine"]


class StagingEngine(TorchCheckpointEngine):
    """In place of DeepSpeed's own way to write files: ``save`` copies, and ``take`` hands over what is to be written.

    The memory stays for the next checkpoint: to get it anew from the system costs more than to copy. On a GPU it is
    page-locked.
    """

    def __init__(self, pin: bool) -> None:
        super().__init__()
        self._pin = pin
        self._buffers: dict[str, list[Tensor]] = {}
        self._staged: dict[Path, Any] = {}

    def preserves_storage_sharing(self) -> bool:
        """False: DeepSpeed need not clone tensors that are views of larger ones, the copies here are none."""
        return False

    def save(self, state_dict: Any, path: str) -> None:
        """Copy what DeepSpeed wants in the file ``path``."""
        buffers = self._buffers.setdefault(Path(path).name, [])
        taken: list[Tensor] = []
        self._staged[Path(path)] = _staged(state_dict, buffers, taken, self._pin)
        self._buffers[Path(path).name] = taken

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Nothing: DeepSpeed writes no file."""

    def take(self) -> dict[Path, Any]:
        """What has been copied since the last call, by file; whole once the device has done its part."""
        if self._pin:
            torch.cuda.synchronize()
        staged, self._staged = self._staged, {}
        return staged


def _staged(value: Any, buffers: list[Tensor], taken: list[Tensor], pin: bool) -> Any:
    """A copy of nested containers; tensors are copied into ``buffers`` in the order they are met, into new ones where
    those do not fit, and listed in ``taken``."""
    if isinstance(value, Tensor):
        source = value.detach()
        place = len(taken)
        if place < len(buffers) and (buffers[place].shape, buffers[place].dtype) == (
            source.shape,
            source.dtype,
        ):
            buffer = buffers[place]
        else:
            buffer = torch.empty(source.shape, dtype=source.dtype, pin_memory=pin and source.numel() > 0)
        taken.append(buffer)
        return buffer.copy_(source, non_blocking=True)
    if isinstance(value, dict):
        # Keeps the class, and what state dicts carry beside their items.
        copied = copy.copy(value)
        for key, each in value.items():
            copied[key] = _staged(each, buffers, taken, pin)
        return copied
    if isinstance(value, list):
        return [_staged(each, buffers, taken, pin) for each in value]
    if type(value) is tuple:
        return tuple(_staged(each, buffers, taken, pin) for each in value)
    return copy.deepcopy(value)
