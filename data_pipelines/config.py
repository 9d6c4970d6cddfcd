"""Configuration of the data pipeline."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

from segclip.data_pipelines.superpixels import PatchLabelRule, SuperpixelMethod

__all__ = ["CaptionParts", "DataConfig", "SuperpixelConfig"]


class SuperpixelConfig(SuperpixelMethod):
    """Superpixels of the training stream. Method and parameters apply where a shard stores no map."""

    patch_label: PatchLabelRule = Field(
        default="vote",
        description="Id of a patch: majority of its pixels, or (for parity with the original) their mean.",
    )


class CaptionParts(BaseModel):
    """How often a caption is given whole, as one of the things it lists, or as the ground they are on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    full: float = Field(default=1.0, ge=0, le=1, description="Chance of the whole caption.")
    object: float = Field(default=0.0, ge=0, le=1, description="Chance of one of the things listed.")
    ground: float = Field(default=0.0, ge=0, le=1, description="Chance of what follows the last 'on'.")

    @model_validator(mode="after")
    def _sum_to_one(self) -> CaptionParts:
        total = self.full + self.object + self.ground
        if abs(total - 1) > 1e-6:
            raise ValueError(f"caption_parts full + object + ground must be 1, not {total:g}")
        return self

    @property
    def chances(self) -> tuple[float, float, float]:
        return (self.full, self.object, self.ground)


class DataConfig(BaseModel):
    """Where the samples come from and what is done to them on the way to the network."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shards: str = Field(description="URL or path of a folder of shards with its manifest.json.")
    image_size: int = Field(default=224, ge=8, description="Side of the square training picture in pixels.")
    words: int = Field(
        default=32, ge=3, le=77, description="Tokens per caption, start and end token included."
    )
    crop_scale: tuple[float, float] = Field(
        default=(0.5, 1.0),
        description="Smallest and largest share of the picture's area a random crop keeps.",
    )
    crop_ratio: tuple[float, float] = Field(
        default=(3 / 4, 4 / 3), description="Narrowest and widest crop, width over height."
    )
    flip: bool = Field(default=False, description="Mirror half of the pictures.")
    workers: int = Field(
        default=4, ge=0, description="Loader processes per rank; 0 loads in the training process."
    )
    prefetch: int = Field(default=4, ge=1, description="Batches each worker prepares ahead.")
    lanes: int = Field(
        default=24,
        ge=1,
        description="Reading lanes of the whole run; a multiple of ranks x workers. Part of the order.",
    )
    shuffle_block: int = Field(
        default=1000, ge=1, description="Samples a lane shuffles together; 1 keeps them in order."
    )
    checksum: bool = Field(
        default=True, description="Compare each shard with the SHA-256 of the manifest when it is read."
    )
    max_pixels: int = Field(
        default=100_000_000, ge=1, description="Pictures with more pixels are refused from their header."
    )
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
