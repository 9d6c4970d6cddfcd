"""Which parameter learns at which rate; the original's groups are compared name by name in tests/golden."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from segclip.models import SegCLIP, segclip_quickstart
from segclip.trainer.config import load_run_config
from segclip.trainer.optimizer import OptimizerConfig, freeze, frozen_parameters, parameter_groups

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
