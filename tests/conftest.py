"""Shared by all tests.

One thread a process, so that tests that start several ranks do not fight over two cores.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

# Read when cuBLAS starts: without it, its products are refused under torch.use_deterministic_algorithms.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest
import torch

torch.set_num_threads(1)

# Triton reads this when it is first imported: without a GPU, its kernels are interpreted.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Files of tests that take minutes.
LONGEST = (
    "trainer/test_quickstart.py",
    "distributed/test_large_batch.py",
    "distributed/test_two_hosts.py",
    "faults/test_store_checkpoints.py",
    "kernels/test_compiles.py",
    "distributed/test_skipped_steps.py",
    "faults/test_ranks.py",
    "trainer/test_optimizer.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """They begin first: in the end, one of the processes side by side would be left alone with them."""
    items.sort(key=lambda item: not item.path.as_posix().endswith(LONGEST))
