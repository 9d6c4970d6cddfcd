"""Configuration of the data pipeline."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from segclip.credentials import check_no_credentials
from segclip.data_pipelines.order import EpochEnd
from segclip.data_pipelines.patch_labels import PatchLabelRule
from segclip.data_pipelines.storage.config import StoreConfig
from segclip.data_pipelines.storage.urls import CREDENTIALS
from segclip.data_pipelines.superpixels import SuperpixelMethod

__all__ = ["CaptionParts", "DataConfig", "SourceConfig", "SuperpixelConfig"]


class SuperpixelConfig(SuperpixelMethod):
    """Superpixels of the training stream. Method and parameters apply where a shard stores no map."""

    patch_label: PatchLabelRule = Field(
        default="vote",
        description="Superpixel of a patch: that of most of its pixels, or the mean of their ids, as in the original.",
    )


class CaptionParts(BaseModel):
    """How often a caption is given whole, as one of the things it lists, or as the ground they are on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    full: float = Field(default=1.0, ge=0, le=1, description="Chance of the whole caption.")
    object: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description='Chance of one of the things listed alone: of "a star and a bar on sand", the star or the bar.',
    )
    ground: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Chance of what follows the last 'on': of the same caption, the sand.",
    )

    @model_validator(mode="after")
    def _sum_to_one(self) -> CaptionParts:
        total = self.full + self.object + self.ground
        if abs(total - 1) > 1e-6:
            raise ValueError(f"caption_parts full + object + ground must be 1, not {total:g}")
        return self

    @property
    def chances(self) -> tuple[float, float, float]:
        return (self.full, self.object, self.ground)


class SourceConfig(BaseModel):
    """One of several shard sets."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$", description="Name in metrics, such as cc3m.")
    shards: str = Field(min_length=1, description="URL or path of a folder of shards with its manifest.json.")
    weight: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="How often it is drawn from, beside the weights of the others. null on all of them joins the "
        "sets to one, in which each sample comes once per epoch.",
    )


class DataConfig(BaseModel):
    """Where the samples come from and what is done to them on the way to the network."""

    # Values may be secrets that stand where they should not.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    shards: str | None = Field(
        default=None, description="URL or path of a folder of shards with its manifest.json."
    )
    sources: tuple[SourceConfig, ...] = Field(
        default=(), description="Several shard sets, in place of shards: joined, or mixed by weight."
    )
    image_size: int = Field(
        default=224,
        ge=8,
        description="Side of the crops in pixels; as model.image_size, unless positions shall be resampled.",
    )
    words: int = Field(
        default=32,
        ge=3,
        le=77,
        description="Tokens per caption (words and parts of words), start and end token included; longer ones are cut.",
    )
    crop_scale: tuple[float, float] = Field(
        default=(0.5, 1.0),
        description="Smallest and largest share of the picture's area a random crop keeps.",
    )
    crop_ratio: tuple[float, float] = Field(
        default=(3 / 4, 4 / 3), description="Narrowest and widest crop, width over height."
    )
    flip: bool = Field(default=False, description="Mirror half of the pictures, left to right.")
    workers: int = Field(
        default=4,
        ge=0,
        description="Loader processes of each rank (training process, one a GPU); 0 loads in that process itself.",
    )
    prefetch: int = Field(default=4, ge=1, description="Batches each worker prepares ahead.")
    lanes: int = Field(
        default=24,
        ge=1,
        description="Parts in which the whole run reads an epoch side by side: a multiple of ranks x workers. Part of "
        "the order of samples, so a run that has begun keeps it.",
    )
    shuffle_block: int = Field(
        default=1000,
        ge=1,
        description="Samples that a lane shuffles together; 1 keeps them in order. Part of the order of samples, too.",
    )
    epoch_end: EpochEnd = Field(
        default="join",
        description="What is done where an epoch's samples are no multiple of the global batch: join it to the next "
        "in one batch, drop the rest, or pad the last batch with the epoch's first samples.",
    )
    checksum: bool = Field(
        default=True, description="Compare each shard with the SHA-256 of the manifest when it is read."
    )
    max_pixels: int = Field(
        default=100_000_000, ge=1, description="Pictures with more pixels are refused from their header."
    )
    max_decompression: int = Field(
        default=1000,
        ge=1,
        description="Pictures above 16 MiB of pixels are refused if that is more than so many times their file.",
    )
    on_error: Literal["raise", "quarantine"] = Field(
        default="raise",
        description="What is done about a bad sample or shard: stop, or put another sample in its place.",
    )
    max_bad_samples: float = Field(
        default=0.01, ge=0, le=1, description="Share of samples that may be bad before a run is stopped."
    )
    max_bad_shards: float = Field(
        default=0.02, ge=0, le=1, description="Share of shards that may be bad before a run is stopped."
    )
    allow_pipe: bool = Field(
        default=False,
        description="Let shards be 'pipe:COMMAND {}', which runs a shell command for each object.",
    )
    store: StoreConfig = StoreConfig()
    superpixels: SuperpixelConfig = SuperpixelConfig()
    caption_parts: CaptionParts = CaptionParts()

    @model_validator(mode="after")
    def _ranges(self) -> DataConfig:
        for name in ("crop_scale", "crop_ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high or (name == "crop_scale" and high > 1):
                limit = " <= 1" if name == "crop_scale" else ""
                raise ValueError(f"data.{name} is [{low:g}, {high:g}]: needs 0 < smallest <= largest{limit}")
        return self

    @model_validator(mode="after")
    def _no_secrets(self) -> DataConfig:
        # Of a whole section, so that no message repeats the value of the field.
        for url in (self.shards, *(source.shards for source in self.sources)):
            check_no_credentials(url or "", CREDENTIALS)
        return self

    @model_validator(mode="after")
    def _one_way_to_name_the_data(self) -> DataConfig:
        if (self.shards is None) == (not self.sources):
            raise ValueError(
                f"data.shards is {self.shards!r} and data.sources names {len(self.sources)} sets: "
                "give the one (a single shard set) or the other (several), not both or neither"
            )
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError(f"data.sources has the names {names}: each may occur once")
        if len({source.weight is None for source in self.sources}) == 2:
            weights = {source.name: source.weight for source in self.sources}
            raise ValueError(
                f"data.sources has the weights {weights}: give all of them one, or none to join the sets"
            )
        if self.weighted and self.epoch_end != "join":
            raise ValueError(
                f"data.epoch_end={self.epoch_end}, but sets that are mixed by weight have no common epoch: "
                "leave it at join"
            )
        return self

    @property
    def weighted(self) -> bool:
        """Whether several sets are mixed by weight."""
        return any(source.weight is not None for source in self.sources)

    @property
    def named_sources(self) -> tuple[SourceConfig, ...]:
        """The shard sets, a single one included, which bears the last part of its URL as its name."""
        if self.shards is None:
            return self.sources
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", self.shards.rstrip("/").rpartition("/")[2])
        return (SourceConfig(name=name or "data", shards=self.shards),)
