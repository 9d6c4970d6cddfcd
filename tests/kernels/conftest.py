"""Kernels run on a GPU where there is one, and else interpreted on the CPU: see ``tests/conftest.py``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


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
