"""Several backward passes, one reduction of gradients over ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["GradientSums", "one_reduction"]


@contextmanager
def one_reduction(engine: Any) -> Iterator[GradientSums]:
    """Inside, backward passes add up on each rank; on leaving, gradients are averaged over ranks once.

    Between passes each rank holds the gradients of all parameters, at any ZeRO stage.

    Yields the sums, whose ``add`` is to be called after every backward pass.
    """
    # The plain optimiser and DeepSpeed's wrapper for low precision without ZeRO cannot coalesce.
    coalesces = hasattr(engine.optimizer, "_coalesce_grad_reduction")
    sums = GradientSums(engine.module)
    with engine.coalesce_grad_reduction() if coalesces else engine.no_sync():
        yield sums
        sums.write()
    if not coalesces:
        engine.allreduce_gradients()


class GradientSums:
    """Sums in float32 of gradients that come in a smaller type.

    A sum of many small numbers in bfloat16 would lose the last of them. Here only the finished sum is rounded, as the
    gradient of a single pass is. Gradients in float32 are left to add up where they are.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._sums: dict[nn.Parameter, Tensor] = {}

    @torch.no_grad()
    def add(self) -> None:
        """Take the gradients of a backward pass; what is left in their place is zero."""
        for parameter in self.module.parameters():
            if parameter.grad is None or parameter.grad.dtype.itemsize >= 4:
                continue
            if parameter in self._sums:
                self._sums[parameter] += parameter.grad
            else:
                self._sums[parameter] = parameter.grad.float()
            parameter.grad.zero_()

    def held(self) -> list[Tensor]:
        """The float32 sums so far."""
        return list(self._sums.values())

    @torch.no_grad()
    def write(self) -> None:
        """Put the sums in the gradients' place."""
        for parameter, total in self._sums.items():
            assert parameter.grad is not None
            parameter.grad.copy_(total)
