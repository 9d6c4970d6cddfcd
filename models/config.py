"""Sizes and switches of the network."""

from __future__ import annotations

import re
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["CLIP_MEAN", "CLIP_STD", "LOCAL", "ModelConfig"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# Before a folder that ``init_from`` names.
LOCAL = "local-dir:"


class ModelConfig(BaseModel):
    """Everything that decides the shape of the network and what a forward pass computes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image_size: int = Field(224, gt=0, description="Side of the square training image in pixels.")
    patch_size: int = Field(16, gt=0, description="Side of a patch in pixels; divides image_size.")
    vision_width: int = Field(
        768, gt=0, description="Numbers that stand for a patch inside the vision tower."
    )
    vision_heads: int = Field(
        12, gt=0, description="Attention heads of the vision tower; divides vision_width."
    )
    vision_layers: int = Field(
        12,
        gt=0,
        description="Transformer blocks of the vision tower, before and after the patches are gathered into centers.",
    )
    first_stage_layers: int = Field(
        10,
        ge=0,
        description="How many of them work on patches, before these are gathered; the others work on centers.",
    )
    centers: int = Field(
        8,
        gt=0,
        description="Learnable centers, which gather patches into regions: the most regions an image can have.",
    )
    center_layers: int = Field(
        2,
        ge=0,
        description="Cross-attention blocks in which centers look at patches before they gather them.",
    )
    assignment_temperature: float = Field(
        0.9,
        gt=0,
        description="Temperature of the Gumbel softmax that assigns patches to centers in training: higher spreads a "
        "patch's gradient over more centers. Evaluation uses 1 and no noise.",
    )
    center_init_std: float = Field(0.02, gt=0, description="Standard deviation that the centers start with.")
    linear_init_std: float = Field(
        0.02,
        gt=0,
        description="Standard deviation that linear layers start with; a narrow network needs more, about "
        "one over the root of its width.",
    )
    ignore_empty_centers: bool = Field(
        False,
        description="Leave centers that hold no patch out of the maximum that makes the image feature "
        "(not in the paper).",
    )
    embed_dim: int = Field(
        512, gt=0, description="Length of the features in which images and texts are compared."
    )
    text_width: int = Field(512, gt=0, description="Numbers that stand for a token inside the text tower.")
    text_heads: int = Field(8, gt=0, description="Attention heads of the text tower; divides text_width.")
    text_layers: int = Field(12, gt=0, description="Transformer blocks of the text tower.")
    context_length: int = Field(77, gt=1, description="Largest number of tokens in a text.")
    vocab_size: int = Field(49408, gt=2, description="Number of tokens; the last id ends a text.")
    quick_gelu: bool = Field(
        True,
        description="CLIP's blocks compute QuickGELU, as OpenAI's weights and the paper need; false: exact GELU, "
        "as many open_clip weights need.",
    )
    mask_ratio: float = Field(
        0.75,
        gt=0,
        lt=1,
        description="Share of the patches that are hidden from the second pass, which reconstructs them.",
    )
    decoder_depth: int = Field(
        3, ge=0, description="Transformer blocks of the decoder that reconstructs hidden patches."
    )
    decoder_heads: int = Field(
        8, gt=0, description="Its attention heads; divides its width, half of vision_width."
    )
    text_reconstruction: bool = Field(
        False,
        description="Also predict hidden words of the text (an option of the original, not in its recipe).",
    )
    text_mask_ratio: float = Field(
        0.15, gt=0, lt=1, description="Share of words hidden if text_reconstruction."
    )
    text_decoder_depth: int = Field(
        3, ge=0, description="Transformer blocks of the decoder that predicts hidden words."
    )
    text_decoder_words: int = Field(
        77, gt=0, description="Rows of its table of positions, the largest number of words it takes."
    )
    text_decoder_heads: int = Field(
        8, gt=0, description="Its attention heads; divides its width, half of embed_dim."
    )
    drop_path: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Chance that a sample skips a block of the vision tower: 0 for the first one, rising linearly to "
        "this for the last.",
    )
    patch_dropout: float = Field(
        0.0, ge=0, lt=1, description="Share of the patches left out of each training image: faster, coarser."
    )
    activation_checkpointing: bool = Field(
        False,
        description="Compute the inside of each block again in the backward pass instead of keeping it: less memory, a "
        "third more arithmetic.",
    )
    init_from: str | None = Field(
        None,
        description="Weights to start from: model and tag of open_clip, such as ViT-B-16/openai, or model and file of "
        "weights, or local-dir:FOLDER; null starts at random.",
    )
    image_mean: tuple[float, float, float] = Field(
        CLIP_MEAN,
        description="Means of red, green and blue that are subtracted from pixels in [0, 1]; CLIP's.",
    )
    image_std: tuple[float, float, float] = Field(
        CLIP_STD, description="Standard deviations of red, green and blue that they are divided by; CLIP's."
    )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches of a training image."""
        side = self.image_size // self.patch_size
        return side, side

    @property
    def patches(self) -> int:
        """Patches of a training image."""
        return self.grid[0] * self.grid[1]

    @property
    def decoder_width(self) -> int:
        """Width of the reconstruction decoder."""
        return self.vision_width // 2

    @property
    def text_decoder_width(self) -> int:
        """Width of the text decoder."""
        return self.embed_dim // 2

    def visible_patches(self, patches: int) -> int:
        """How many of ``patches`` the reconstruction pass sees: the kept share counts the class token too."""
        return int((patches + 1) * (1 - self.mask_ratio)) - 1

    def kept_patches(self, patches: int) -> int:
        """How many of ``patches`` patch dropout leaves."""
        return max(1, round(patches * (1 - self.patch_dropout)))

    def visible_words(self, words: int) -> int:
        """How many of ``words`` the text reconstruction pass sees."""
        return int(words * (1 - self.text_mask_ratio))

    def for_others(self) -> Self:
        """The same configuration to be published: of a file or folder to start from it keeps the name alone.

        Where that lies is nobody's business, and no use on another machine.
        """
        if self.init_from is None:
            return self
        # The first part is a model of open_clip; a tag has no further parts, a file or folder may.
        kind, separator, rest = self.init_from.partition(":" if self.init_from.startswith(LOCAL) else "/")
        return self.model_copy(
            update={"init_from": kind + separator + re.split(r"[/\\]", rest.rstrip("/\\"))[-1]}
        )

    @model_validator(mode="after")
    def _check(self) -> Self:
        _divides(self, "patch_size", "image_size")
        _divides(self, "vision_heads", "vision_width")
        _divides(self, "text_heads", "text_width")
        if self.first_stage_layers > self.vision_layers:
            raise ValueError(
                f"first_stage_layers is {self.first_stage_layers}, "
                f"more than the {self.vision_layers} vision_layers"
            )
        if self.vision_width % 8 or self.decoder_width % self.decoder_heads:
            raise ValueError(
                f"vision_width is {self.vision_width}, so the decoder is {self.vision_width / 2:g} wide: "
                "this must be a multiple of 4 (sine and cosine of two axes) and of decoder_heads = "
                f"{self.decoder_heads}"
            )
        if self.visible_patches(self.patches) < 1:
            raise ValueError(
                f"mask_ratio {self.mask_ratio} leaves none of {self.patches} patches visible: lower it"
            )
        if self.text_reconstruction and self.text_decoder_width % self.text_decoder_heads:
            raise ValueError(
                f"half of embed_dim = {self.embed_dim} must be a multiple of text_decoder_heads = "
                f"{self.text_decoder_heads}"
            )
        return self


def _divides(config: ModelConfig, small: str, large: str) -> None:
    low, high = getattr(config, small), getattr(config, large)
    if high % low:
        raise ValueError(f"{small} must divide {large}, got {low} and {high}")
