"""Evaluation protocols as data: all that lies between a checkpoint and its score, in one named YAML file.

``docs/evaluation.md`` says what each of those that come with the package does and how to write one's own.
"""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Literal
from typing import Protocol as Shape

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from segclip.console import nearest
from segclip.eval.datasets.published import DATASETS
from segclip.eval.templates import template_set
from segclip.eval.words import distinct_words, plain
from segclip.eval.yaml_files import read_mapping, validated

__all__ = ["DatasetRule", "Geometry", "Normalisation", "Place", "Protocol", "load_protocol", "protocol_names"]

Normalisation = Literal["model", "clip", "imagenet"]
Place = Literal["center", "pixel"]


class ModelSizes(Shape):
    """What a protocol asks of a model's configuration."""

    @property
    def image_size(self) -> int: ...
    @property
    def patch_size(self) -> int: ...


class Geometry(BaseModel):
    """How pixels reach the encoder, after the protocol has been applied to one model: sizes are in pixels."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    short_side: int
    long_side_max: int | None
    window: int
    stride: int
    filter: Literal["bilinear", "bicubic"]
    antialias: bool
    normalisation: Normalisation = "model"


class DatasetRule(BaseModel):
    """What a protocol says about one data set."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    background: Literal["none", "threshold", "words", "threshold_and_words"] = Field(
        default="none",
        description="none: every pixel gets a named class. threshold: label 0 where the best score is below "
        "`threshold`. words: label 0 where one of `background_words` scores best. threshold_and_words: both.",
    )
    threshold: float | None = Field(
        default=None, gt=0, lt=1, description="score below which a pixel is background"
    )
    background_words: tuple[str, ...] = Field(default=(), description="phrases that stand for the background")
    shared_words: tuple[str, ...] = Field(
        default=(),
        description="background words that are also classes, on purpose; such a class never wins",
    )
    smallest_share: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="classes that hold no more than this part of an image's foreground give way to the next best",
    )
    classes: tuple[str | tuple[str, ...], ...] | None = Field(
        default=None,
        description="phrase (or list of synonyms) for each class in label order, background left out; "
        "null: the data set's own names",
    )
    short_side: int | Literal["model"] | None = Field(
        default=None, description="here instead of the protocol's"
    )
    window: int | Literal["model"] | None = Field(default=None, description="here instead of the protocol's")
    stride: int | Literal["window", "half"] | None = Field(
        default=None, description="here instead of the protocol's"
    )
    logit_scale: float | None = Field(default=None, gt=0, description="here instead of the protocol's")

    @field_validator("short_side", "window", "stride")
    @classmethod
    def _positive(cls, value: int | str | None) -> int | str | None:
        return _at_least_one(value)

    @model_validator(mode="after")
    def _consistent(self) -> DatasetRule:
        by_threshold, by_words = "threshold" in self.background, "words" in self.background
        if by_threshold != (self.threshold is not None):
            raise ValueError("`threshold` is given exactly when `background` is threshold")
        if by_words != bool(self.background_words):
            raise ValueError("`background_words` are given exactly when `background` is words")
        if self.smallest_share is not None and self.background == "none":
            raise ValueError("`smallest_share` needs a background for small classes to give way to")
        distinct_words("shared word", ((word,) for word in self.shared_words))
        distinct_words("background word", ((word,) for word in self.background_words))
        if self.classes is not None:
            self.check_words(self.phrases() or ())
        return self

    def check_words(self, classes: tuple[tuple[str, ...], ...]) -> None:
        """Refuse classes that do not go together with each other or with the background.

        Args:
            classes: phrases of each class, this rule's own or those of the data set.

        Raises:
            ValueError: an empty word, one that stands twice, or a background word that is also a class without
                being listed in ``shared_words``.
        """
        both = distinct_words("class", classes) & {plain(word) for word in self.background_words}
        shared = {plain(word) for word in self.shared_words}
        if both - shared:
            raise ValueError(
                f"{min(both - shared)!r} is a background word and a class, so the class would never win; "
                "leave one out, or list it in `shared_words` if that is meant"
            )
        if shared - both:
            raise ValueError(
                f"{min(shared - both)!r} of `shared_words` is not both a background word and a class"
            )

    def phrases(self) -> tuple[tuple[str, ...], ...] | None:
        """``classes`` with every entry as a tuple of synonyms."""
        if self.classes is None:
            return None
        return tuple((each,) if isinstance(each, str) else each for each in self.classes)


def _at_least_one(value: int | str | None) -> int | str | None:
    if isinstance(value, int) and value < 1:
        raise ValueError(f"must be at least 1, got {value}")
    return value


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
    normalisation: Normalisation = Field(
        default="model",
        description="mean and deviation of pixels: those the model was trained with, CLIP's or ImageNet's",
    )
    templates: tuple[str, ...] = Field(
        min_length=1,
        description="sentences with {} in the place of the class name, or the name of a set of them; the record "
        "of a result holds the sentences",
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
    logit_scale: float | None = Field(
        default=None, gt=0, description="factor on the cosine; null: the model's own, as it was trained"
    )
    softmax_at: Place = Field(
        default="center",
        description="center: probabilities of centers are averaged over windows and enlarged. pixel: cosines are, "
        "and become probabilities at each pixel of the original image.",
    )
    threshold_at: Place = Field(
        default="center",
        description="center: a center of a window is background, unless it is the best of its window. pixel: a "
        "pixel of the original image is, by its averaged and enlarged score.",
    )
    datasets: dict[str, DatasetRule] = Field(
        description="the rules for each data set the protocol is defined for"
    )

    @field_validator("short_side", "window", "stride", "long_side_max")
    @classmethod
    def _positive(cls, value: int | str | None) -> int | str | None:
        return _at_least_one(value)

    @field_validator("templates", mode="before")
    @classmethod
    def _named_set(cls, value: object) -> object:
        return template_set(value) if isinstance(value, str) else value

    @field_validator("templates")
    @classmethod
    def _one_place(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for template in value:
            if template.count("{}") != 1:
                raise ValueError(f"template {template!r} must hold {{}} exactly once")
        return value

    @model_validator(mode="after")
    def _places(self) -> Protocol:
        if self.softmax_at == "pixel" and self.score != "softmax":
            raise ValueError("`softmax_at: pixel` goes with `score: softmax` only")
        if self.softmax_at == "pixel" and self.threshold_at == "center":
            raise ValueError(
                "`softmax_at: pixel` needs `threshold_at: pixel`: there is no probability of a center"
            )
        for name, rule in self.datasets.items():
            if rule.background == "threshold_and_words" and self.threshold_at == "center":
                raise ValueError(f"{name}: `background: threshold_and_words` needs `threshold_at: pixel`")
        return self

    @property
    def sha256(self) -> str:
        """Hash of the content, independent of how the file is written."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def rule(self, dataset: str) -> DatasetRule:
        """The rule for ``dataset``. One of the user's own that is not listed has its own words and no background.

        Raises:
            ValueError: the protocol says nothing about a published data set.
        """
        if dataset not in self.datasets and dataset not in DATASETS:
            return DatasetRule()
        if dataset not in self.datasets:
            raise ValueError(
                f"protocol {self.name!r} says nothing about data set {dataset!r}"
                f"{nearest(dataset, self.datasets)}; "
                f"it covers {', '.join(sorted(self.datasets)) or 'none'}"
            )
        return self.datasets[dataset]

    def geometry(self, model: ModelSizes, dataset: str | None = None) -> Geometry:
        """Sizes for one model, and for one data set where the protocol gives it sizes of its own.

        Raises:
            ValueError: the window is no multiple of the patch size or larger than the short side, or the
                stride would leave gaps.
        """
        rule = self.datasets.get(dataset or "", DatasetRule())
        asked_short = self.short_side if rule.short_side is None else rule.short_side
        asked_window = self.window if rule.window is None else rule.window
        asked_stride = self.stride if rule.stride is None else rule.stride
        short = model.image_size if asked_short == "model" else asked_short
        window = model.image_size if asked_window == "model" else asked_window
        stride = {"window": window, "half": max(window // 2, 1)}.get(str(asked_stride), asked_stride)
        assert isinstance(stride, int)
        where = f"protocol {self.name!r}"
        if window % model.patch_size:
            raise ValueError(
                f"{where}: window {window} is no multiple of the model's patch size {model.patch_size}"
            )
        if window > short:
            raise ValueError(f"{where}: window {window} is larger than the short side {short}")
        if stride > window:
            raise ValueError(f"{where}: stride {stride} above window {window} would skip pixels")
        return Geometry(
            short_side=short, long_side_max=self.long_side_max, window=window, stride=stride,
            filter=self.filter, antialias=self.antialias, normalisation=self.normalisation,
        )  # fmt: skip

    def scale(self, dataset: str | None = None) -> float | None:
        """Factor on the cosine; None: the model's own."""
        own = self.datasets[dataset].logit_scale if dataset in self.datasets else None
        return self.logit_scale if own is None else own


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
        return _parse(shipped[text].read_bytes(), f"protocol {text!r}")
    path = Path(text)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ValueError(f"protocol file {path} does not exist")
        return _parse(path.read_bytes(), str(path))
    raise ValueError(
        f"unknown protocol {text!r}{nearest(text, shipped)}; known: {', '.join(sorted(shipped))}, "
        "or the path of a .yaml file"
    )


def _parse(content: bytes, where: str) -> Protocol:
    return validated(Protocol, read_mapping(content, where), where, nested=DatasetRule)
