from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from segclip.data_pipelines.samples import Batch
from segclip.trainer.prefetch import on_device, pinned


def batches(count: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randint(0, 255, shape, generator=generator)

    return [
        Batch(
            numbers(4, 3, 64, 64).to(torch.uint8), numbers(4, 8), numbers(4, 8), numbers(4, 16), list("abcd"),
            torch.arange(4 * step, 4 * step + 4),
        )
        for step in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
    ],
)
def test_batches_arrive_whole_and_in_order(device: str) -> None:
    given = batches(20)
    for before, after in zip(given, on_device(given, torch.device(device)), strict=True):
        # Work on the device between batches, so that memory given away too early is overwritten.
        torch.empty(4, 3, 64, 64, dtype=torch.uint8, device=device).fill_(7)
        for field in fields(Batch):
            old, new = getattr(before, field.name), getattr(after, field.name)
            if isinstance(old, torch.Tensor):
                assert new.device.type == device
                assert torch.equal(old, new.cpu())
            else:
                assert old == new


def test_batches_for_a_cpu_stay_as_they_are() -> None:
    given = batches(3)
    for before, after in zip(given, pinned(given, torch.device("cpu")), strict=True):
        assert after.images is before.images
