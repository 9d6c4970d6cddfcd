from __future__ import annotations

import time

import pytest
import torch

from segclip.trainer.timing import StepTimer


def test_parts_add_up_and_are_given_a_step() -> None:
    timer = StepTimer(torch.device("cpu"))
    for _ in range(2):
        with timer.part("forward"):
            time.sleep(0.02)
        with timer.part("backward"):
            time.sleep(0.04)
    taken = timer.take(2)
    assert list(taken) == ["time/backward", "time/forward"]
    assert 0.02 <= taken["time/forward"] < taken["time/backward"] < 0.5
    assert timer.take(1) == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_the_device_is_timed() -> None:
    timer = StepTimer(torch.device("cuda"))
    x = torch.randn(4096, 4096, device="cuda")
    begin = time.perf_counter()
    with timer.part("products"):
        for _ in range(20):
            x = x @ x / 64
    launched = time.perf_counter() - begin
    assert timer.take(1)["time/products"] > launched / 2
