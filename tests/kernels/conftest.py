"""Kernels run on a GPU where there is one, and else interpreted on the CPU: see ``tests/conftest.py``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor


@pytest.fixture
def device() -> str:
    """Where the kernels run."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Dispatch to the Triton kernels, and fill memory that torch hands out uninitialised with NaN."""
    monkeypatch.setenv("SEGCLIP_KERNELS", "triton")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture
def scattered(monkeypatch: pytest.MonkeyPatch) -> Callable[[Tensor], Tensor]:
    """Copies [B, L, ...] so that neighbours in L lie so far apart that the last one is past 2**31 elements.

    Of the memory between them nothing is touched, so on a CPU it is never really taken.
    """

    def scatter(tensor: Tensor) -> Tensor:
        size, stride = tensor.shape, 2**31 // (tensor.shape[1] - 1) + 1
        with monkeypatch.context() as patch:
            patch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
            memory = torch.empty(size[1] * stride + tensor.numel(), dtype=tensor.dtype, device=tensor.device)
        inner = tensor[0, 0].contiguous().stride()
        far = memory.as_strided(size, (tensor[0, 0].numel(), stride, *inner))
        return far.copy_(tensor)

    return scatter


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> Callable[[ModuleType], Iterator[int]]:
    """Walks over the configurations of a module's kernels: each step lets all of them run their next one."""

    def walk(module: ModuleType) -> Iterator[int]:
        tuners = [value for value in vars(module).values() if hasattr(value, "all_configs")]
        assert tuners
        for number in range(max(len(tuner.all_configs) for tuner in tuners)):
            with monkeypatch.context() as patch:
                for tuner in tuners:
                    patch.setattr(tuner, "configs", [tuner.all_configs[number % len(tuner.all_configs)]])
                yield number

    return walk
