from __future__ import annotations

import torch

from benchmarks.step_cpu import compare, matmul_rate, missing_units

FLOAT32 = {
    "seconds": 6.0,
    "gflops": 90.0,
    "matmul_gflops": 100.0,
    "share": 0.9,
    "repeats": 3,
    "before_gib": 1.0,
    "peak_gib": 4.0,
}


def test_ratios_and_targets() -> None:
    half = {**FLOAT32, "seconds": 1.5, "peak_gib": 3.0}
    figures = compare({"float32": FLOAT32, "bfloat16": half}, 4, missing=False)
    speedup = figures["batch 4, bfloat16 speed / float32"]
    memory = figures["batch 4, bfloat16 peak memory / float32"]
    assert (speedup.value, speedup.holds, memory.value, memory.holds) == (4.0, True, 0.75, False)
    assert figures["batch 4, float32 step / matrix product"].holds
    assert "emulated" not in speedup.beside
    free = compare({"float32": FLOAT32, "bfloat16": half}, 4, missing=True, targets=False)
    assert {figure.holds for figure in free.values()} == {None}
    assert "emulated" in free["batch 4, bfloat16 speed / float32"].beside


def test_a_case_that_would_take_too_long_is_said_to() -> None:
    left_out = {"expected_seconds": 2400.0, "matmul_gflops": 0.3}
    figures = compare({"float32": FLOAT32, "bfloat16": left_out}, 4, missing=True)
    found = figures["batch 4, bfloat16 matrix product"]
    assert "not run: a step would take some 40 min" in found.beside
    assert not any("speed" in name or "bfloat16 peak" in name for name in figures)


def test_what_the_processor_lacks_is_detected(monkeypatch) -> None:
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64", "avx512_bf16": True}
    )
    assert missing_units() == ""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64", "cpu_name": "X"})
    assert missing_units().startswith("this CPU (X) has no instructions for bfloat16 products")
    assert "nor AVX-512" in missing_units()


def test_the_rate_of_a_matrix_product() -> None:
    assert matmul_rate(torch.float32, seconds=0.01) > 1e6
