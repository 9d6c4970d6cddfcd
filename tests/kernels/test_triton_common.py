"""Which configuration of a kernel runs, and that the choice is kept."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from segclip.kernels.superpixel_kl import superpixel_kl, superpixel_kl_reference


def run(program: str, **environment: str) -> str:
    """What a Python process prints."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_every_kernel_keeps_its_choice_on_disk() -> None:
    """Among two to four configurations; in a process where kernels are compiled and not interpreted."""
    program = """
import importlib
from triton.runtime.autotuner import Autotuner
for name in ("contrastive", "masked_decoder", "patch_assignment", "superpixel_kl"):
    module = importlib.import_module(f"segclip.kernels.{name}_triton")
    for kernel in vars(module).values():
        if isinstance(kernel, Autotuner):
            print(name, kernel.cache_results, 2 <= len(kernel.configs) <= 4)
"""
    lines = run(program, TRITON_INTERPRET="0").splitlines()
    assert len(lines) == 12
    assert all(line.endswith("True True") for line in lines), lines


@pytest.mark.usefixtures("kernels")
def test_nothing_is_timed_where_results_have_to_repeat(device, monkeypatch) -> None:
    """With all configurations to choose from: the interpreter could not even time them."""
    from segclip.kernels import superpixel_kl_triton as module

    for tuner in (module._forward, module._backward):
        monkeypatch.setattr(tuner, "configs", tuner.all_configs)
        monkeypatch.setattr(tuner, "cache", {})
    hard = torch.rand(2, 6, 49, device=device, requires_grad=True)
    ids = torch.randint(7, (2, 49), device=device)
    loss = superpixel_kl(hard, ids)
    loss.backward()
    torch.testing.assert_close(loss, superpixel_kl_reference(hard, ids))
    assert module._forward.cache == module._backward.cache == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="kernels are timed on a GPU alone")
def test_a_second_process_does_not_choose_again(tmp_path) -> None:
    program = """
import torch
from segclip.kernels.superpixel_kl import superpixel_kl
superpixel_kl(torch.rand(2, 6, 49, device="cuda"), torch.randint(7, (2, 49), device="cuda"))
"""
    environment = {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_PRINT_AUTOTUNING": "1"}
    assert "autotuning for function _forward" in run(program, **environment)
    assert "autotuning" not in run(program, **environment)
