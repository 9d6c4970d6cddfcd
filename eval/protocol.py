"""Evaluation protocols as data: all that lies between a checkpoint and its score, in one named YAML file."""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Literal
from typing import Protocol as Shape

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from segclip.console import nearest

__all__ = ["DatasetRule", "Geometry", "Protocol", "load_protocol", "protocol_names"]


class ModelSizes(Shape):
    """What a protocol asks of a model's configuration."""

    @property
    def image_size(self) -> int: ...
    @property
    def patch_size(self) -> int: ...


class Geometry(BaseModel):
    """Sizes in pixels, after the protocol has been applied to one model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    short_side: int
    long_side_max: int | None
    window: int
    stride: int
    filter: Literal["bilinear", "bicubic"]
    antialias: bool


class DatasetRule(BaseModel):
    """What a protocol says about one data set."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    background: Literal["none", "threshold", "words"] = Field(
        default="none",
        description="none: every pixel gets a named class. threshold: label 0 where the best score is below "
        "`threshold`. words: label 0 where one of `background_words` scores best.",
    )
    threshold: float | None = Field(
        default=None, gt=0, lt=1, description="score below which a pixel is background"
    )
    background_words: tuple[str, ...] = Field(default=(), description="phrases that stand for the background")
    classes: tuple[str | tuple[str, ...], ...] | None = Field(
        default=None,
        description="phrase (or list of synonyms) for each class in label order, background left out; "
        "null: the data set's own names",
    )

    @model_validator(mode="after")
    def _consistent(self) -> DatasetRule:
        if (self.background == "threshold") != (self.threshold is not None):
            raise ValueError("`threshold` is given exactly when `background` is threshold")
        if (self.background == "words") != bool(self.background_words):
            raise ValueError("`background_words` are given exactly when `background` is words")
        return self

    def phrases(self) -> tuple[tuple[str, ...], ...] | None:
        """``classes`` with every entry as a tuple of synonyms."""
        if self.classes is None:
            return None
        return tuple((each,) if isinstance(each, str) else each for each in self.classes)


class Protocol(BaseModel):
    """How images become label maps and label maps a score."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="the file's name without its ending")
    about: str = Field(description="one sentence: where the protocol comes from")
    short_side: int | Literal["model"] = Field(description="length the shorter image side is resized to")
    long_side_max: int | None = Field(
        default=2048, description="bound on the longer side; wins over `short_side`"
    )
    filter: Literal["bilinear", "bicubic"] = Field(
        default="bilinear", description="interpolation of the resize"
    )
    antialias: bool = Field(
        default=False, description="low-pass before shrinking; OpenCV's bilinear does not"
    )
    window: int | Literal["model"] = Field(description="side of the square windows the encoder sees")
    stride: int | Literal["window", "half"] = Field(description="step between windows")
    normalisation: Literal["model"] = Field(
        default="model", description="mean and deviation the model was trained with"
    )
    templates: tuple[str, ...] = Field(
        min_length=1, description="sentences with {} in the place of the class name"
    )
    template_averaging: Literal["mean_then_normalise", "normalise_mean_normalise"] = Field(
        default="mean_then_normalise",
        description="how the embeddings of one phrase under all templates become one",
    )
    score: Literal["softmax", "softmax_times_top_k"] = Field(
        default="softmax",
        description="softmax: of scale x cosine over the classes, for each center. softmax_times_top_k: "
        "that, times the softmax over the `top_k` classes that fit the whole window best (0 for others).",
    )
    top_k: int = Field(default=5, ge=1, description="classes kept for a window by softmax_times_top_k")
    datasets: dict[str, DatasetRule] = Field(
        description="the rules for each data set the protocol is defined for"
    )

    @field_validator("short_side", "window", "stride", "long_side_max")
    @classmethod
    def _positive(cls, value: int | str | None) -> int | str | None:
        if isinstance(value, int) and value < 1:
            raise ValueError(f"must be at least 1, got {value}")
        return value

    @field_validator("templates")
    @classmethod
    def _one_place(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for template in value:
            if template.count("{}") != 1:
                raise ValueError(f"template {template!r} must hold {{}} exactly once")
        return value

    @property
    def sha256(self) -> str:
        """Hash of the content, independent of how the file is written."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def rule(self, dataset: str) -> DatasetRule:
        """The rule for ``dataset``; ValueError when the protocol does not define one."""
        if dataset not in self.datasets:
            raise ValueError(
                f"protocol {self.name!r} says nothing about data set {dataset!r}"
                f"{nearest(dataset, self.datasets)}; "
                f"it covers {', '.join(sorted(self.datasets)) or 'none'}"
            )
        return self.datasets[dataset]

    def geometry(self, model: ModelSizes) -> Geometry:
        """Sizes for one model.

        Raises:
            ValueError: the window is no multiple of the patch size or larger than the short side, or the
                stride would leave gaps.
        """
        short = model.image_size if self.short_side == "model" else self.short_side
        window = model.image_size if self.window == "model" else self.window
        stride = {"window": window, "half": max(window // 2, 1)}.get(str(self.stride), self.stride)
        assert isinstance(stride, int)
        if window % model.patch_size:
            raise ValueError(
                f"protocol {self.name!r}: window {window} is no multiple of the model's patch size "
                f"{model.patch_size}"
            )
        if window > short:
            raise ValueError(f"protocol {self.name!r}: window {window} is larger than the short side {short}")
        if stride > window:
            raise ValueError(
                f"protocol {self.name!r}: stride {stride} above window {window} would skip pixels"
            )
        return Geometry(
            short_side=short, long_side_max=self.long_side_max, window=window, stride=stride,
            filter=self.filter, antialias=self.antialias,
        )  # fmt: skip


def _shipped() -> dict[str, resources.abc.Traversable]:
    folder = resources.files("segclip") / "configs" / "protocols"
    return {each.name.removesuffix(".yaml"): each for each in folder.iterdir() if each.name.endswith(".yaml")}


def protocol_names() -> tuple[str, ...]:
    """Names of the protocols that come with the package."""
    return tuple(sorted(_shipped()))


def load_protocol(name_or_path: str | Path) -> Protocol:
    """A shipped protocol by name, or one of your own by the path of its YAML file.

    Raises:
        ValueError: no such protocol (the nearest name is offered) or a field is wrong (the field is named).
    """
    text = str(name_or_path)
    shipped = _shipped()
    if text in shipped:
        return _parse(shipped[text].read_text(encoding="utf-8"), f"protocol {text!r}")
    path = Path(text)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ValueError(f"protocol file {path} does not exist")
        return _parse(path.read_text(encoding="utf-8"), str(path))
    raise ValueError(
        f"unknown protocol {text!r}{nearest(text, shipped)}; known: {', '.join(sorted(shipped))}, "
        "or the path of a .yaml file"
    )


def _parse(text: str, where: str) -> Protocol:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{where} must be a mapping of fields, got {type(content).__name__}")
    try:
        return Protocol.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = DatasetRule.model_fields if len(first["loc"]) > 1 else Protocol.model_fields
            raise ValueError(
                f"{where}: unknown field {field!r}{nearest(str(first['loc'][-1]), known)}"
            ) from None
        got = f", got {first['input']!r}" if not isinstance(first["input"], dict) else ""
        raise ValueError(f"{where}: field {field!r}: {first['msg']}{got}") from None
