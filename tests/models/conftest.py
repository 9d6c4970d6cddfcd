"""A tiny network and inputs for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from segclip.models.config import ModelConfig
from segclip.models.noise import KeyedNoise
from segclip.models.segclip import SegCLIP

TINY: dict[str, Any] = {
    "image_size": 24,
    "patch_size": 6,
    "vision_width": 32,
    "vision_heads": 2,
    "vision_layers": 3,
    "first_stage_layers": 2,
    "centers": 4,
    "center_layers": 1,
    "center_init_std": 1.0,
    "embed_dim": 16,
    "text_width": 32,
    "text_heads": 2,
    "text_layers": 1,
    "context_length": 8,
    "vocab_size": 64,
    "decoder_depth": 1,
    "decoder_heads": 2,
    "text_decoder_words": 8,
    "text_decoder_heads": 2,
}


class Inputs(NamedTuple):
    """A batch and its noise."""

    images: Tensor
    tokens: Tensor
    superpixels: Tensor
    noise: KeyedNoise

    def rows(self, rows: Tensor) -> Inputs:
        """Some samples of the batch."""
        noise = KeyedNoise(self.noise.seed, self.noise.positions_B[rows])
        return Inputs(self.images[rows], self.tokens[rows], self.superpixels[rows], noise)


def _tiny_config(**changes: Any) -> ModelConfig:
    return ModelConfig(**{**TINY, **changes})


def _tiny_model(seed: int = 0, **changes: Any) -> SegCLIP:
    torch.manual_seed(seed)
    model = SegCLIP(_tiny_config(**changes))
    # The start values leave residual branches tiny; with larger ones every part matters to the result.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embedding" not in name and "centers" not in name:
                parameter.mul_(3)
    return model


def _inputs(batch: int, config: ModelConfig, size: tuple[int, int] | None = None, seed: int = 1) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    height, width = size or (config.image_size, config.image_size)
    patches = (height // config.patch_size) * (width // config.patch_size)
    tokens = torch.randint(1, config.vocab_size - 1, (batch, config.context_length), generator=generator)
    ends = torch.randint(2, config.context_length, (batch,), generator=generator)
    tokens[torch.arange(batch), ends] = config.vocab_size - 1
    tokens[torch.arange(config.context_length) > ends[:, None]] = 0
    return Inputs(
        torch.randint(0, 256, (batch, 3, height, width), generator=generator, dtype=torch.uint8),
        tokens,
        torch.randint(0, 5, (batch, patches), generator=generator),
        KeyedNoise(7, torch.randperm(1000, generator=generator)[:batch]),
    )


def same_weights(one: SegCLIP, other: SegCLIP) -> bool:
    """Whether two networks hold the same parameters."""
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., ModelConfig]:
    """Makes a tiny configuration with changes."""
    return _tiny_config


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., SegCLIP]:
    """Makes a tiny network with changes of its configuration."""
    return _tiny_model


@pytest.fixture(scope="session")
def make_inputs() -> Callable[..., Inputs]:
    """Makes a batch."""
    return _inputs
