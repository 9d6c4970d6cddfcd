from __future__ import annotations

import pytest
import torch

from segclip.models import (
    segclip_quickstart,
    segclip_vit_b16,
    segclip_vit_b32,
    segclip_vit_l14,
)


@pytest.mark.parametrize(
    ("build", "parameters", "grid"),
    [
        (segclip_vit_b32, 191_286_729, (7, 7)),
        (segclip_vit_b16, 188_799_561, (14, 14)),
        (segclip_vit_l14, 522_155_925, (16, 16)),
        (segclip_quickstart, 3_667_701, (8, 8)),
    ],
)
def test_parameters(build, parameters, grid) -> None:
    with torch.device("meta"):  # sizes without memory
        model = build()
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert model.config.grid == grid


def test_changes() -> None:
    with torch.device("meta"):
        assert segclip_quickstart(centers=5).vision.aggregation.centers.shape[0] == 5
