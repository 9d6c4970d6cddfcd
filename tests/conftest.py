"""Shared by all tests.

One thread a process, so that tests that start several ranks do not fight over two cores.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

# Read when cuBLAS starts: without it, its products are refused under torch.use_deterministic_algorithms.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch

torch.set_num_threads(1)

# Triton reads this when it is first imported: without a GPU, its kernels are interpreted.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
