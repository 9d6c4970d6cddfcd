"""Names, shapes, counts, norm epsilons, start values and frozen parameters of the real ViT-B/16."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from segclip.models.config import ModelConfig
from segclip.models.freezing import frozen_names
from segclip.models.names import own_name, released_name, to_released
from segclip.models.pretrained import reference_key
from segclip.models.released import infer_config
from segclip.models.segclip import SegCLIP
from segclip.models.sizes import segclip_vit_b16


@pytest.fixture(scope="module")
def model() -> SegCLIP:
    torch.manual_seed(0)
    return segclip_vit_b16()


@pytest.fixture(scope="module")
def structure(golden_json):
    return golden_json("structure_vitb16.json")


def test_names_and_shapes(model, structure) -> None:
    own = to_released(model.state_dict())
    assert {name: list(tensor.shape) for name, tensor in own.items()} == structure["state_dict"]
    assert len(own) == 415
    assert [own_name(name) for name in own] == list(model.state_dict())


def test_sizes_inferred_from_released_tensors(structure) -> None:
    tensors = {name: torch.empty(shape, device="meta") for name, shape in structure["state_dict"].items()}
    assert infer_config(tensors) == ModelConfig()


def test_number_of_parameters(model, structure) -> None:
    assert sum(parameter.numel() for parameter in model.parameters()) == structure["n_params"] == 188_799_561


def test_parameters_that_never_train(model, structure) -> None:
    never = [
        released_name(name) for name, parameter in model.named_parameters() if not parameter.requires_grad
    ]
    assert never == structure["default_requires_grad_false"]


def test_norm_epsilons(model, structure) -> None:
    found = {
        released_name(name): module.eps
        for name, module in model.named_modules()
        if isinstance(module, nn.LayerNorm)
    }
    # 24 norms in the text tower and two per block elsewhere: the golden table lists each of them.
    assert found == structure["layernorm_eps"]


def test_start_values(model, structure) -> None:
    own = to_released(dict(model.named_parameters()))
    wrong = []
    for name, (mean, std, low, high) in structure["init_stats_mean_std_min_max_of_non_clip_params"].items():
        tensor = own[name].detach()
        # Means and deviations of samples scatter by their standard errors; the ranges only tell normal from
        # uniform.
        error = 6 * max(std, 1e-12) / tensor.numel() ** 0.5
        same = (
            abs(float(tensor.mean()) - mean) <= error and abs(float(tensor.std(correction=0)) - std) <= error
        )
        if std == 0:
            same = same and float(tensor.min()) == low and float(tensor.max()) == high
        uniform = std > 0 and high < 1.9 * std
        if uniform:
            same = same and float(tensor.abs().max()) <= 1.001 * high
        if not same:
            wrong.append(name)
    assert not wrong


def test_frozen_parameters(model, structure) -> None:
    for setting, expected in structure["frozen_after_freeze_block"].items():
        layers, text_layers = map(
            int, re.fullmatch(r"freeze_layer_num=(-?\d+),freeze_text_layer_num=(\d+)", setting).groups()
        )
        prefixes = frozen_names(model.config, layers, text_layers)
        found = {
            released_name(name)
            for name, parameter in model.named_parameters()
            if not parameter.requires_grad or any(name == p or name.startswith(f"{p}.") for p in prefixes)
        }
        assert found == set(expected), setting


@pytest.mark.parametrize(("table", "first_stage"), [("config_A", 10), ("config_B_first_stage_9_sample", 9)])
def test_which_layers_start_from_clip(structure, table, first_stage) -> None:
    expected = structure[f"clip_key_to_reference_key_{table}"]
    assert {key: reference_key(key, first_stage) for key in expected} == expected
