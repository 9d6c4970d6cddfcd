"""Sums of many small gradients. That ranks reduce them once and right is in tests/distributed/test_large_batch.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from segclip.trainer.reduction import GradientSums


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_many_small_gradients_are_not_lost(dtype: torch.dtype) -> None:
    """1 + 2048 / 2048 is 2; added one by one in bfloat16 it stays 1."""
    module = nn.Linear(1, 1, bias=False, dtype=dtype)
    sums = GradientSums(module)
    for factor in [1.0, *[2.0**-11] * 2048]:
        module(torch.full((1, 1), factor, dtype=dtype)).sum().backward()
        sums.add()
    sums.write()
    assert module.weight.grad is not None
    assert module.weight.grad.item() == 2.0
    assert module.weight.grad.dtype == dtype


def test_parameters_without_gradient_stay_so() -> None:
    module = nn.ModuleDict({"used": nn.Linear(1, 1), "unused": nn.Linear(1, 1)}).bfloat16()
    sums = GradientSums(module)
    module["used"](torch.ones(1, 1, dtype=torch.bfloat16)).sum().backward()
    sums.add()
    sums.write()
    assert module["used"].weight.grad is not None
    assert module["used"].weight.grad.item() == 1.0
    assert module["unused"].weight.grad is None
