"""What a user may choose about a shard set that is built."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from segclip.data_pipelines.superpixels import SuperpixelMethod

__all__ = ["Options"]

SMALLEST_SIDE = 8


@dataclass(frozen=True)
class Options:
    """What a set is to be like.

    Attributes:
        per_shard: most samples in a shard.
        superpixels: method of the maps stored with the pictures; None stores none.
        resize: short side in pixels of pictures that are larger; None keeps them as they are.
        quality: of the JPEGs that resizing writes.
        longest_caption: characters of a caption that are kept.
        max_pixels: a picture with more is refused from its header.
        min_side: a picture with a shorter side is refused.
        unique: of pictures whose files are equal byte for byte, only the first is kept.
    """

    per_shard: int = 1000
    superpixels: SuperpixelMethod | None = SuperpixelMethod(segments=64)  # noqa: RUF009 - it is frozen
    resize: int | None = None
    quality: int = 90
    longest_caption: int = 1000
    max_pixels: int = 100_000_000
    min_side: int = 16
    unique: bool = False

    def __post_init__(self) -> None:
        limits: dict[str, tuple[int, int]] = {
            "per_shard": (1, 10**9),
            "resize": (SMALLEST_SIDE, 1 << 16),
            "quality": (1, 100),
            "longest_caption": (1, 10**6),
            "max_pixels": (1, 1 << 30),
            "min_side": (1, 1 << 16),
        }
        for name, (least, most) in limits.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise ValueError(f"--{name.replace('_', '-')} is {value}: it must be from {least} to {most}")

    def describe(self) -> dict[str, Any]:
        """For the plan and the manifest."""
        method = self.superpixels.parameters() if self.superpixels else None
        return {**asdict(self), "superpixels": method}
