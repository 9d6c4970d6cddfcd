"""Several backward passes, one reduction of gradients over ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = ["one_reduction"]


@contextmanager
def one_reduction(engine: Any) -> Iterator[Callable[[], None]]:
    """Inside, backward passes add up on each rank; on leaving, gradients are averaged over ranks once.

    Yields a function that is to be called after every backward pass. Every pass must reach the same parameters.

    Between passes each rank holds the gradients of all parameters, at any ZeRO stage: in the type of the parameters,
    and a sum in float32 beside them where that type is smaller, for a sum of many small numbers in bfloat16 would
    lose the last of them. Only the finished sum is rounded, as the gradient of a single pass would be.
    """
    # The plain optimiser and DeepSpeed's wrapper for low precision without ZeRO cannot coalesce.
    coalesces = hasattr(engine.optimizer, "_coalesce_grad_reduction")
    sums: dict[torch.nn.Parameter, Tensor] = {}
    with engine.coalesce_grad_reduction() if coalesces else engine.no_sync():
        yield lambda: _add_up(engine.module, sums)
        for parameter, total in sums.items():
            assert parameter.grad is not None
            parameter.grad.copy_(total)
    if not coalesces:
        engine.allreduce_gradients()


@torch.no_grad()
def _add_up(module: torch.nn.Module, sums: dict[torch.nn.Parameter, Tensor]) -> None:
    for parameter in module.parameters():
        if parameter.grad is None or parameter.grad.dtype.itemsize >= 4:
            continue
        if parameter in sums:
            sums[parameter] += parameter.grad
        else:
            sums[parameter] = parameter.grad.float()
        parameter.grad.zero_()
