"""The configuration is refused with the name, the value and the remedy, or taken whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from segclip.models.config import ModelConfig
from segclip.models.sizes import SIZES
from segclip.trainer.config import flatten, load_run_config, save_run_config

RECIPES = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_is_valid(path: Path) -> None:
    config = load_run_config(path)
    assert config.model.image_size == config.data.image_size
    assert config.data.words <= config.model.context_length


@pytest.mark.parametrize(("recipe", "size"), [("b16", "vit_b16"), ("b16_32k", "vit_b16"), ("l14", "vit_l14")])
def test_recipes_are_of_the_size_they_are_named_after(recipe: str, size: str) -> None:
    config = load_run_config(QUICKSTART.with_name(f"segclip_vit_{recipe}.yaml"))
    assert config.model.model_copy(update={"init_from": None}) == ModelConfig(**SIZES[size])
    assert config.name == f"segclip-vit-{recipe.replace('_', '-')}"
    assert config.run_dir == f"runs/segclip_vit_{recipe}"
    # One card and one node; eight nodes for the large batch. With all their workers.
    for ranks in (1, 8, 64) if recipe.endswith("32k") else (1, 8):
        assert config.train.global_batch % ranks == 0
        assert config.data.lanes % (ranks * max(1, config.data.workers)) == 0


def test_overrides() -> None:
    config = load_run_config(
        QUICKSTART,
        ["train.steps=7", "optimizer.lr=2e-4", "zero.stage=3", "name=other", "evaluation.dataset=null"],
    )
    assert (config.train.steps, config.optimizer.lr, config.zero.stage, config.name) == (7, 2e-4, 3, "other")
    assert config.evaluation.dataset is None


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.centres=4", ["model.centres", "did you mean 'centers'"]),
        ("trian.steps=4", ["trian", "did you mean 'train'"]),
        ("zero.stagee=1", ["zero.stagee", "did you mean 'stage'"]),
        ("data.superpixels.segmnts=9", ["data.superpixels.segmnts", "segments"]),
        ("train.steps=many", ["train.steps", "'many'"]),
        ("train.steps=0", ["train.steps", "0", "greater than 0"]),
        ("zero.stage=4", ["zero.stage", "4"]),
        ("train.precision=fp8", ["train.precision", "fp8", "bf16"]),
        ("model.patch_size=7", ["patch_size", "7"]),
        ("train.steps", ["train.steps", "section.key=value"]),
        ("name.first=a", ["name", "not a section"]),
        ("train.steps=[", ["not valid YAML"]),
        ("train.steps=true", ["train.steps = True", "true and false"]),
        ("optimizer.lr=yes", ["optimizer.lr = True", "true and false"]),
        ("zero.stage=true", ["zero.stage = True"]),
        ("data.crop_scale=[true, 1]", ["data.crop_scale", "true and false"]),
        ("data.superpixels.segments=false", ["data.superpixels.segments = False"]),
        ("data.flip=2", ["data.flip", "2"]),
        ("data.words=17", ["data.words is 17", "model.context_length = 16"]),
        (
            "loss.text_reconstruction=0.5",
            ["loss.text_reconstruction is 0.5", "model.text_reconstruction=true"],
        ),
    ],
)
def test_refused_with_name_and_value(override: str, words: list[str]) -> None:
    with pytest.raises(ValueError) as refused:
        load_run_config(QUICKSTART, [override])
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["zero.stage=0", "zero.offload_optimizer=cpu"], "zero.stage is 0: set zero.stage to 1, 2 or 3"),
        (["zero.stage=2", "zero.offload_parameters=cpu"], "zero.stage is 2, which keeps all parameters"),
        (["zero.stage=3", "zero.offload_parameters=cpu"], "set zero.offload_optimizer=cpu first"),
        (["zero.stage=2", "zero.keep_below_elements=7"], "zero.keep_below_elements is 7, which only stage 3"),
        (["optimizer.kind=lamb"], "optimizer.kind is 'lamb' and zero.stage is 1: LAMB scales"),
        (["zero.stage=0", "optimizer.kind=lamb", "optimizer.implementation=cpu"], "no implementation 'cpu'"),
        (["zero.offload_optimizer=cpu", "optimizer.implementation=fused"], "implementation is 'fused'"),
        (
            ["zero.stage=3", "train.compile=blocks"],
            "train.compile=blocks and zero.stage=3 do not go together",
        ),
        (["zero.gradient_dtype=fp32", "train.precision=bf16"], "set zero.stage=2, which has the same cost"),
        (["train.precision=fp16", "zero.stage=0"], "set zero.stage=1 or train.precision=bf16"),
        (["zero.gradient_dtype=fp32", "train.precision=bf16", "zero.stage=0"], "but zero.stage is 0"),
    ],
)
def test_settings_that_do_not_go_together(overrides: list[str], words: str) -> None:
    with pytest.raises(ValueError) as refused:
        load_run_config(QUICKSTART, overrides)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["zero.stage=0", "optimizer.kind=lamb"],
        ["zero.stage=1", "zero.offload_optimizer=cpu", "zero.gradient_dtype=fp32", "train.precision=bf16"],
        ["zero.stage=2", "zero.gradient_dtype=fp32", "train.precision=bf16"],
        ["zero.stage=3", "zero.offload_optimizer=cpu", "zero.offload_parameters=cpu"],
        ["zero.stage=1", "zero.gradient_dtype=fp32", "train.precision=fp32"],
    ],
)
def test_settings_that_do_go_together(overrides: list[str]) -> None:
    load_run_config(QUICKSTART, overrides)


def test_a_refused_section_is_not_printed_whole() -> None:
    with pytest.raises(ValueError) as refused:
        load_run_config(QUICKSTART, ["model.patch_size=7"])
    assert len(str(refused.value)) < 200


def test_truth_values_where_they_belong() -> None:
    config = load_run_config(
        QUICKSTART, ["data.flip=true", "model.text_reconstruction=true", "loss.text_reconstruction=0.5"]
    )
    assert config.data.flip
    assert config.loss.text_reconstruction == 0.5


def test_missing_file_names_those_beside_it() -> None:
    with pytest.raises(ValueError, match=r"quickstrat\.yaml.*quickstart\.yaml"):
        load_run_config(QUICKSTART.with_name("quickstrat.yaml"))


def test_missing_section(tmp_path: Path) -> None:
    tree = yaml.safe_load(QUICKSTART.read_text())
    del tree["optimizer"]
    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(ValueError, match="'optimizer' is missing"):
        load_run_config(path)


@pytest.mark.parametrize(
    ("text", "words"), [("a: [", "not valid YAML"), ("- a\n", "mapping"), ("", "mapping")]
)
def test_not_a_configuration(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        load_run_config(path)


def test_resolved_configuration_reads_back_equal(tmp_path: Path) -> None:
    config = load_run_config(QUICKSTART)
    save_run_config(config, tmp_path / "config.yaml")
    assert load_run_config(tmp_path / "config.yaml") == config


def test_flatten() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": 2}}, "e": [3]}) == {"a.b": 1, "a.c.d": 2, "e": [3]}
