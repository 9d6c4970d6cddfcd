"""Which parameter learns at which rate; the original's groups are compared name by name in tests/golden."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from segclip.models.segclip import SegCLIP
from segclip.models.sizes import segclip_quickstart
from segclip.trainer.config import load_run_config
from segclip.trainer.optimizer import (
    DecayByPart,
    OptimizerConfig,
    build_optimizer,
    choose_implementation,
    freeze,
    frozen_parameters,
    parameter_groups,
)

CONFIGS = Path(__file__).parents[2] / "configs"
EMBEDDINGS = {
    "vision.class_embedding",
    "vision.positional_embedding",
    "vision.patch_embed",
    "vision.ln_pre",
    "text.positional_embedding",
    "text.token_embedding",
}


@pytest.fixture
def model() -> SegCLIP:
    return segclip_quickstart()


def test_every_trainable_parameter_is_in_one_group(model: SegCLIP) -> None:
    groups = parameter_groups(model, OptimizerConfig(lr=1.0, lower_lr=0.1, lower_text_lr=0.01))
    members = [id(p) for group in groups for p in group["params"]]
    assert sorted(members) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert {group["name"]: group["lr"] for group in groups} == {
        "pretrained": 0.1,
        "pretrained_no_decay": 0.1,
        "text_embeddings_no_decay": 0.01,
        "new": 1.0,
        "new_no_decay": 1.0,
    }


def test_rates_fall_back_to_the_next_higher_one(model: SegCLIP) -> None:
    assert {group["lr"] for group in parameter_groups(model, OptimizerConfig(lr=0.5))} == {0.5}
    rates = {g["name"]: g["lr"] for g in parameter_groups(model, OptimizerConfig(lr=0.5, lower_lr=0.2))}
    assert rates["text_embeddings_no_decay"] == 0.2


def test_decay_rules(model: SegCLIP) -> None:
    names = {id(p): name for name, p in model.named_parameters()}

    def decayed(rule: str) -> set[str]:
        groups = parameter_groups(model, OptimizerConfig(lr=1, decay_rule=rule))  # type: ignore[arg-type]
        return {names[id(p)] for group in groups for p in group["params"] if group["weight_decay"] > 0}

    original, usual = decayed("original"), decayed("usual")
    assert usual < original
    assert {"logit_scale", "vision.ln_pre.weight", "text.token_embedding.weight"} <= original - usual
    assert "vision.patch_embed.proj.weight" in usual
    assert not any("bias" in name for name in original)


def test_weight_decay_of_each_part(model: SegCLIP) -> None:
    parts = DecayByPart(pretrained=0.3, text_embeddings=0.0)
    groups = parameter_groups(
        model,
        OptimizerConfig(lr=1, weight_decay=0.1, weight_decay_by_part=parts, decay_rule="original"),
    )
    assert {group["name"]: group["weight_decay"] for group in groups} == {
        "pretrained": 0.3,
        "pretrained_no_decay": 0.0,
        "text_embeddings": 0.0,
        "new": 0.1,
        "new_no_decay": 0.0,
    }


def test_layer_decay_counts_from_the_top_of_each_tower(model: SegCLIP) -> None:
    """Two patch blocks and one center block; one block of text."""
    assert (len(model.vision.patch_blocks), len(model.vision.center_blocks)) == (2, 1)
    groups = parameter_groups(model, OptimizerConfig(lr=1.0, lower_lr=0.1, layer_decay=0.5))
    names = {id(p): name for name, p in model.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in groups for p in group["params"]}
    expected = {
        "vision.patch_embed.proj.weight": 0.1 / 16,
        "vision.ln_pre.bias": 0.1 / 16,
        "vision.patch_blocks.0.mlp.fc1.weight": 0.1 / 8,
        "vision.patch_blocks.1.mlp.fc1.weight": 0.1 / 4,
        "vision.center_blocks.0.mlp.fc1.weight": 1 / 2,
        "vision.reconstruction_blocks.0.mlp.fc1.weight": 1,
        "vision.aggregation.centers": 1,
        "vision.projection": 1,
        "decoder.embed.weight": 1,
        "text.token_embedding.weight": 0.1 / 4,
        "text.transformer.resblocks.0.mlp.c_fc.weight": 0.1 / 2,
        "text.ln_final.weight": 0.1,
        "logit_scale": 0.1,
    }
    assert {name: rates[name] for name in expected} == pytest.approx(expected)
    assert sorted(rates) == sorted(name for name, p in model.named_parameters() if p.requires_grad)
    assert "pretrained_depth03" in {group["name"] for group in groups}


def test_no_layer_decay_leaves_the_originals_groups(model: SegCLIP) -> None:
    assert not any("depth" in group["name"] for group in parameter_groups(model, OptimizerConfig(lr=1)))


def steps(build: Callable[[nn.Module], torch.optim.Optimizer]) -> list[torch.Tensor]:
    """A small network's weights after five steps with gradients of several sizes; one parameter has none."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(7, 5), nn.LayerNorm(5), nn.Linear(5, 3), nn.Linear(3, 1))
    optimizer = build(network)
    for number in range(5):
        torch.manual_seed(number)
        for name, parameter in network.named_parameters():
            size = 10.0 ** (number - 2)
            parameter.grad = None if name == "3.bias" else torch.randn_like(parameter) * size
        optimizer.step()
    return [parameter.detach().clone() for parameter in network.parameters()]


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["fused", "cpu"])
def test_every_implementation_of_adamw_makes_the_same_steps(implementation: str) -> None:
    """Those that run on a CPU. DeepSpeed's GPU kernel is compared where there is one."""

    def build(network: nn.Module, which: str = implementation) -> torch.optim.Optimizer:
        config = OptimizerConfig(lr=0.01, weight_decay=0.1, implementation=which)  # type: ignore[arg-type]
        optimizer = build_optimizer(network, config)
        optimizer.param_groups[0]["lr"] = 0.02
        return optimizer

    expected = steps(lambda network: build(network, "torch"))
    found = steps(build)
    for before, after in zip(expected, found, strict=True):
        torch.testing.assert_close(after, before, rtol=1e-6, atol=1e-7)


def test_lamb_steps_by_the_trust_ratio() -> None:
    """One step from zero moments: the update is sign(g) + decay * w, scaled to |w| / |update|; no decay, no scaling."""
    torch.manual_seed(0)
    network = nn.Linear(4, 3)
    weight, bias = network.weight.detach().clone(), network.bias.detach().clone()
    optimizer = build_optimizer(network, OptimizerConfig(lr=0.1, kind="lamb", weight_decay=0.2, eps=1e-12))
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    assert network.weight.grad is not None
    assert network.bias.grad is not None
    update = network.weight.grad.sign() + 0.2 * weight
    optimizer.step()
    torch.testing.assert_close(network.weight.detach(), weight - 0.1 * update * weight.norm() / update.norm())
    torch.testing.assert_close(network.bias.detach(), bias - 0.1 * network.bias.grad.sign())


@pytest.mark.parametrize(
    ("implementation", "device", "offload", "chosen"),
    [
        ("auto", "cpu", False, "torch"),
        ("auto", "cuda", False, "fused"),
        ("auto", "cuda", True, "cpu"),
        ("cpu", "cuda", True, "cpu"),
        ("cpu", "cpu", False, "cpu"),
        ("deepspeed", "cuda", False, "deepspeed"),
    ],
)
def test_which_implementation_runs(implementation: Any, device: str, offload: bool, chosen: str) -> None:
    config = OptimizerConfig(lr=1, implementation=implementation)
    assert choose_implementation(config, torch.device(device), offload) == chosen


def test_implementations_that_do_not_run_here() -> None:
    with pytest.raises(ValueError, match="'deepspeed', a kernel for GPUs, and there is none"):
        choose_implementation(OptimizerConfig(lr=1, implementation="deepspeed"), torch.device("cpu"), False)
    with pytest.raises(ValueError, match=r"lie on a GPU: set zero\.offload_optimizer=cpu"):
        choose_implementation(OptimizerConfig(lr=1, implementation="cpu"), torch.device("cuda"), False)


def test_freeze_by_name_and_prefix(model: SegCLIP) -> None:
    freeze(model, ("text.token_embedding", "vision.patch_blocks.0"))
    still = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert "text.token_embedding.weight" in still
    assert any(name.startswith("vision.patch_blocks.0.") for name in still)
    assert not any(name.startswith("vision.patch_blocks.1") for name in still)


def test_freezing_what_is_not_there_is_refused(model: SegCLIP) -> None:
    with pytest.raises(ValueError, match=r"'text\.tokens', which is no parameter.*text\.token_embedding"):
        freeze(model, ("text.tokens",))


def test_the_freezing_rule_of_the_original_by_configuration(model: SegCLIP) -> None:
    def frozen(**settings: Any) -> set[str]:
        return set(frozen_parameters(OptimizerConfig(lr=1, **settings), model.config))

    assert frozen() == set()
    assert frozen(freeze_layers=-1) == {"vision.positional_embedding", "vision.patch_embed"}
    assert frozen(freeze_layers=0, frozen=("decoder",)) == {*EMBEDDINGS, "decoder"}
    text = "text.transformer.resblocks.0"
    assert frozen(freeze_layers=0, freeze_text_layers=1) == {*EMBEDDINGS, text}
    blocks = {f"vision.patch_blocks.{number}" for number in range(2)} | {"vision.center_blocks.0", text}
    assert frozen(freeze_layers=3) == EMBEDDINGS | blocks
    freeze(model, tuple(frozen(freeze_layers=3)))
    assert not any(p.requires_grad for p in model.vision.center_blocks.parameters())
    assert model.vision.aggregation.centers.requires_grad


def test_the_papers_recipe_freezes_what_the_original_does_by_default() -> None:
    recipe = load_run_config(CONFIGS / "segclip_vit_b16.yaml")
    assert set(frozen_parameters(recipe.optimizer, recipe.model)) == EMBEDDINGS


def test_the_papers_recipe_says_all_that_the_originals_command_decides() -> None:
    """Values of its README's command and the defaults of its options; none is left to our defaults."""
    recipe = yaml.safe_load((CONFIGS / "segclip_vit_b16.yaml").read_text())
    optimizer = {"lr": 4e-3, "lower_lr": 4e-6, "weight_decay": 0.05, "betas": [0.9, 0.98], "eps": 1e-6}
    expected = {
        "model": {"first_stage_layers": 10, "mask_ratio": 0.75, "init_from": "ViT-B-16/openai"},
        "data": {"image_size": 224, "words": 32, "crop_scale": [0.5, 1.0], "flip": False},
        "loss": {"contrastive": 1, "superpixel_kl": 1, "reconstruction": 1, "text_reconstruction": 0},
        "train": {"global_batch": 768, "gradient_clip": 1.0},
        "optimizer": {**optimizer, "decay_rule": "original", "freeze_layers": 0, "freeze_text_layers": 0},
        "schedule": {"kind": "cosine", "warmup": 0.15, "start": 0.0, "end": 0.0},
    }
    assert {part: {key: recipe[part][key] for key in keys} for part, keys in expected.items()} == expected


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.freeze_layers=5", r"optimizer\.freeze_layers must be -1 to 3 .*got 5$"),
        ("optimizer.freeze_layers=-2", r"optimizer\.freeze_layers = -2"),
        ("optimizer.freeze_text_layers=1", "freeze_text_layers is 1, but freeze_layers is null"),
    ],
)
def test_freezing_rules_that_do_not_fit(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_run_config(CONFIGS / "quickstart.yaml", [override])
