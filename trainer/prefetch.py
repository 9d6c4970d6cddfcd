"""Batches on the device, copied while it computes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from segclip.data_pipelines.samples import Batch

__all__ = ["moved", "on_device", "pinned"]


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches with their tensors on ``device``.

    To a GPU they go from pinned memory on a stream of their own, beside the step that is still being computed: the
    process that launches the steps is ahead of the device, so the copy of a batch ends before its step begins.
    """
    if device.type != "cuda":
        yield from (moved(batch, device) for batch in batches)
        return
    copies = torch.cuda.Stream(device)
    for batch in batches:
        with torch.cuda.stream(copies):
            copied = moved(batch, device, pinned=True)
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(copies)
        for tensor in _tensors(copied).values():
            # The memory is the copying stream's; it must not be given away while the other one reads it.
            tensor.record_stream(computing)
        yield copied


def pinned(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches in memory from which pieces are copied to a GPU quickly; for batches larger than its memory."""
    for batch in batches:
        yield moved(batch, torch.device("cpu"), pinned=device.type == "cuda")


def moved(batch: Batch, device: torch.device, *, pinned: bool = False) -> Batch:
    """The batch with its tensors on ``device``; from pinned memory the copy is not waited for."""
    tensors = _tensors(batch)
    if pinned:
        tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
    copies: dict[str, Any] = {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
    return replace(batch, **copies)


def _tensors(batch: Batch) -> dict[str, Tensor]:
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}
