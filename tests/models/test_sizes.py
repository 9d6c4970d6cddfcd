from __future__ import annotations

from pathlib import Path

import pytest
import torch

from segclip.models.sizes import segclip_quickstart, segclip_vit_b16, segclip_vit_b32, segclip_vit_l14
from segclip.trainer.config import load_run_config

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(
    ("build", "parameters", "grid"),
    [
        (segclip_vit_b32, 191_286_729, (7, 7)),
        (segclip_vit_b16, 188_799_561, (14, 14)),
        (segclip_vit_l14, 522_155_925, (16, 16)),
        (segclip_quickstart, 3_591_797, (8, 8)),
    ],
)
def test_parameters(build, parameters, grid) -> None:
    with torch.device("meta"):  # sizes without memory
        model = build()
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert model.config.grid == grid


@pytest.mark.parametrize(
    ("build", "file"), [(segclip_quickstart, "quickstart.yaml"), (segclip_vit_b16, "segclip_vit_b16.yaml")]
)
def test_a_builder_and_the_configuration_of_its_name_agree(build, file) -> None:
    with torch.device("meta"):
        ours = build().config
    theirs = load_run_config(CONFIGS / file).model
    assert ours == theirs.model_copy(update={"init_from": None, "activation_checkpointing": False})


def test_changes() -> None:
    with torch.device("meta"):
        assert segclip_quickstart(centers=5).vision.aggregation.centers.shape[0] == 5
