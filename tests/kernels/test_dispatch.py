"""Which implementation runs, and what is said about it."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
import torch

from segclip.kernels import dispatch
from segclip.kernels.dispatch import use_triton
from segclip.kernels.masked_decoder import unshuffle


@pytest.fixture(autouse=True)
def nothing_warned_yet() -> None:
    dispatch._warn.cache_clear()
    dispatch._obstacle.cache_clear()


@pytest.mark.parametrize("choice", ["auto", "torch"])
def test_plain_torch_on_the_cpu_without_a_word(choice, monkeypatch) -> None:
    monkeypatch.setenv("SEGCLIP_KERNELS", choice)
    assert not use_triton(torch.zeros(1))


def test_unknown_choice(monkeypatch) -> None:
    monkeypatch.setenv("SEGCLIP_KERNELS", "cuda")
    with pytest.raises(ValueError, match="SEGCLIP_KERNELS must be one of auto, triton, torch, got 'cuda'"):
        use_triton(torch.zeros(1))


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (torch.zeros(1, dtype=torch.float64), "float32 and bfloat16, not torch.float64"),
        (torch.zeros(1, device="meta"), "does not support the device meta"),
    ],
)
def test_one_warning_where_kernels_can_not_run(tensor, reason, monkeypatch) -> None:
    monkeypatch.setenv("SEGCLIP_KERNELS", "triton")
    with pytest.warns(UserWarning, match=reason):
        assert not use_triton(tensor)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not use_triton(tensor)


def test_gradient_of_the_definitions_in_float64(monkeypatch) -> None:
    """float64 goes to the definition even where kernels are asked for."""
    monkeypatch.setenv("SEGCLIP_KERNELS", "triton")
    tokens = torch.zeros(1, 1, 1, dtype=torch.float64)
    with pytest.warns(UserWarning, match="Plain torch takes their place"):
        out = unshuffle(tokens, torch.zeros(1, 1, dtype=torch.int64), tokens[0, 0], tokens[0])
    assert out.dtype == torch.float64


def test_the_definitions_need_no_triton() -> None:
    """In a process of its own, where Triton can not be imported."""
    program = """
import sys, warnings
sys.modules["triton"] = None
warnings.simplefilter("error")
import torch
from segclip.kernels.superpixel_kl import superpixel_kl
print(superpixel_kl(torch.eye(2)[None], torch.zeros(1, 2, dtype=torch.int64)).item())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(done.stdout) > 0


def test_nothing_but_kernels_imports_triton() -> None:
    pytest.importorskip("open_clip")  # a machine that is only there to run the kernels may lack it
    program = "import sys, segclip.models.segclip; print('segclip.kernels.triton_common' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
