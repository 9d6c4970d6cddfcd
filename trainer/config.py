"""The configuration of a run: one YAML file, checked whole before anything heavy starts.

``load_run_config("configs/quickstart.yaml", ["train.steps=100"])`` reads the file, applies the dotted overrides and
returns a frozen ``RunConfig``. Unknown keys, wrong types and values out of range are refused in one ``ValueError``
that names the key, the value and the nearest valid name.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from segclip.console import UserError, nearest
from segclip.data_pipelines.config import DataConfig
from segclip.free_space import describe_unwritten
from segclip.models.config import ModelConfig
from segclip.models.losses import LossConfig
from segclip.trainer.checkpoints.config import CheckpointConfig
from segclip.trainer.optimizer import OptimizerConfig, frozen_parameters
from segclip.trainer.precision import Fp16Config, Precision
from segclip.trainer.schedule import ScheduleConfig
from segclip.trainer.tracking import TrackingConfig
from segclip.trainer.zero import ZeroConfig, check_combination

__all__ = [
    "EvaluationConfig",
    "RunConfig",
    "TrainConfig",
    "as_yaml",
    "flatten",
    "load_run_config",
    "save_run_config",
]


class TrainConfig(BaseModel):
    """Length, batch and arithmetic of a run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(gt=0, description="Optimiser steps of the whole run; the schedule ends here.")
    global_batch: int = Field(
        gt=1,
        description="Samples of a step, of all ranks (training processes) together: each image is told from "
        "the captions of all others. What is trained, whatever the number of ranks.",
    )
    micro_batch: int | None = Field(
        None,
        gt=0,
        description="Samples in one forward pass of a rank, as many as its memory takes; null: its whole share of the "
        "batch. It decides cost, not results: with less than the share, every sample is computed once more.",
    )
    precision: Precision = Field(
        "auto",
        description="Arithmetic of forward and backward. bf16 and fp16 keep float32 master weights; fp16 scales the "
        "loss (train.fp16) and needs a GPU, or a CPU that multiplies it; tf32 computes float32 with products in "
        "TensorFloat-32 on NVIDIA cards since Ampere. auto takes bf16 where the hardware multiplies bfloat16 matrices, "
        "and fp32 elsewhere.",
    )
    fp16: Fp16Config = Field(
        Fp16Config(), description="Loss scaling of precision fp16; no other looks at it."
    )
    compile: Literal["none", "blocks", "towers"] = Field(
        "none",
        description="What torch.compile makes faster at the cost of minutes before the first step: each transformer "
        "block, or each tower as a whole. Not at ZeRO stage 3, which gathers parameters module by module.",
    )
    gradient_clip: float = Field(
        1.0,
        ge=0,
        description="Largest norm of the whole gradient, over all groups and ranks; 0 leaves it alone.",
    )
    max_skipped: int = Field(
        20,
        ge=0,
        description="A step whose gradient is not finite on any rank is skipped by all: weights and moments stay as "
        "they are. After more than so many in a row the run stops. (The first steps of fp16 may be skipped until "
        "its loss scale fits: at most initial_scale_power + hysteresis.)",
    )
    lost_after: float = Field(
        45.0,
        ge=0,
        description="Seconds without a sign of life after which a rank counts as lost: it is named and all others end "
        "with exit code 69; 0 waits as long as the collectives do.",
    )
    look_every: int = Field(
        500,
        ge=0,
        description="Steps between closer looks: the gradient of each loss and of each group of the optimiser, and a "
        "picture of the assignments; 0 never looks.",
    )
    log_every: int = Field(
        20, gt=0, description="Steps between progress lines and between metrics in MLflow."
    )


class EvaluationConfig(BaseModel):
    """Scoring while training, on some images, and of the finished model, on all; ``segclip-eval`` does the latter from
    the command line."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str | None = Field(
        None,
        description="Name of a data set, as segclip-eval takes it; null skips the evaluation after training.",
    )
    data_root: str | None = Field(None, description="Folder of that data set.")
    protocol: str = Field("segclip", description="Name or path of a protocol file.")
    every: int = Field(
        0, ge=0, description="Steps between scores while training; 0 scores the finished model alone."
    )
    images: int = Field(
        200, gt=0, description="Images scored while training, evenly spaced over the data set."
    )


class RunConfig(BaseModel):
    """A whole run: three values and the sections below."""

    # Values may be secrets that stand where they should not.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    name: str = Field(min_length=1, description="Name of the run in MLflow and in the progress line.")
    run_dir: str = Field(
        min_length=1, description="Folder of this run: config, checkpoints, export, MLflow store."
    )
    seed: int = Field(
        0,
        ge=0,
        lt=2**63,
        description="Number that every random choice of the run follows from: same seed, settings and data, same run.",
    )
    model: ModelConfig
    data: DataConfig
    loss: LossConfig = LossConfig()
    train: TrainConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig = ScheduleConfig()
    zero: ZeroConfig = ZeroConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        if self.data.words > self.model.context_length:
            raise ValueError(
                f"data.words is {self.data.words}, but the text encoder reads only model.context_length = "
                f"{self.model.context_length} tokens; lower the one or raise the other"
            )
        if self.loss.text_reconstruction > 0 and not self.model.text_reconstruction:
            raise ValueError(
                f"loss.text_reconstruction is {self.loss.text_reconstruction:g}, but the network has no decoder of "
                "words; set model.text_reconstruction=true, or the weight to 0"
            )
        if self.train.compile != "none" and self.zero.stage == 3:
            raise ValueError(
                f"train.compile={self.train.compile} and zero.stage=3 do not go together: stage 3 gathers parameters "
                "between modules, where the compiler sees one program; use train.compile=none or a lower stage"
            )
        frozen_parameters(self.optimizer, self.model)
        check_combination(self.zero, self.optimizer, self.train.precision)
        return self


def load_run_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file, apply ``a.b=value`` overrides (values are YAML) and check the result.

    Raises:
        ValueError: file missing or not YAML, malformed override, unknown key, wrong type or value out of range.
    """
    path = Path(path)
    if not path.is_file():
        beside = ", ".join(sorted(p.name for p in path.parent.glob("*.yaml"))) if path.parent.is_dir() else ""
        raise ValueError(
            f"no configuration file {str(path)!r}; give the path of a YAML file"
            + (f" such as {beside}" if beside else "")
        )
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ValueError(
            f"{path} must hold a mapping of sections (model, data, train, ...), not {type(tree).__name__}"
        )
    for override in overrides:
        _apply(tree, override)
    _refuse_truth_values(tree, RunConfig, str(path))
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ValueError(f"{path}: " + "; ".join(_explain(item) for item in error.errors())) from error


def as_yaml(config: RunConfig) -> str:
    """The resolved configuration, every default included."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def save_run_config(config: RunConfig, path: str | Path) -> None:
    """Write ``as_yaml`` to a file.

    Raises:
        UserError: it cannot be written.
    """
    text = as_yaml(config)
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(describe_unwritten(error, path, len(text))) from error


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` -> ``{"a.b": 1}``, the names that overrides and MLflow parameters use."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _apply(tree: dict[str, Any], override: str) -> None:
    name, separator, text = override.partition("=")
    if not separator or not name:
        raise ValueError(
            f"override {override!r} is not of the form section.key=value, for example train.steps=100"
        )
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"the value of override {override!r} is not valid YAML: {error}") from error
    if isinstance(value, str):
        value = _number(value)
    *parents, last = name.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ValueError(f"override {override!r}: {parent!r} is a value, not a section")
    tree[last] = value


def _refuse_truth_values(tree: dict[Any, Any], section: type[BaseModel], path: str, prefix: str = "") -> None:
    """Refuse true and false where neither is meant: pydantic would read them as the numbers 1 and 0."""
    for key, value in tree.items():
        field = section.model_fields.get(key)
        if field is None:
            continue
        inner = _model_class(field.annotation)
        if isinstance(value, dict) and inner is not None:
            _refuse_truth_values(value, inner, path, f"{prefix}{key}.")
            continue
        values = value if isinstance(value, list) else [value]
        if any(isinstance(each, bool) for each in values) and not _takes_bool(field.annotation):
            raise ValueError(
                f"{path}: {prefix}{key} = {value!r}: true and false are no value of this setting ({field.description})"
            )


def _takes_bool(annotation: Any) -> bool:
    return annotation is bool or any(_takes_bool(part) for part in typing.get_args(annotation))


def _number(text: str) -> str | float:
    """YAML 1.1 reads ``1e-3`` as a string; people mean the number."""
    try:
        return float(text)
    except ValueError:
        return text


def _explain(item: Any) -> str:
    names = [str(part) for part in item["loc"]]
    name = ".".join(names)
    if item["type"] == "extra_forbidden":
        section = _section(names[:-1])
        allowed = sorted(section.model_fields) if section else []
        return f"unknown key {name!r}{nearest(names[-1], allowed)}; allowed here: {', '.join(allowed)}"
    if item["type"] == "missing":
        return f"key {name!r} is missing"
    message = item["msg"].removeprefix("Value error, ")
    # What concerns a whole section names its values itself.
    return message if isinstance(item["input"], dict) else f"{name} = {item['input']!r}: {message}"


def _section(names: Sequence[str]) -> type[BaseModel] | None:
    """The config class that the dotted path ``names`` leads to."""
    section: type[BaseModel] | None = RunConfig
    for name in names:
        field = section.model_fields.get(name) if section else None
        section = _model_class(field.annotation) if field else None
    return section


def _model_class(annotation: Any) -> type[BaseModel] | None:
    options = (
        typing.get_args(annotation)
        if isinstance(annotation, types.UnionType) or typing.get_args(annotation)
        else (annotation,)
    )
    return next(
        (option for option in options if isinstance(option, type) and issubclass(option, BaseModel)), None
    )
