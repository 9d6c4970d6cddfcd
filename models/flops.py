"""The arithmetic of the network: what utilisation is measured by."""

from __future__ import annotations

import warnings

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from segclip.models.config import ModelConfig
from segclip.models.noise import InjectedNoise
from segclip.models.segclip import SegCLIP

__all__ = ["forward_flops", "training_flops"]


def forward_flops(config: ModelConfig, words: int, *, reconstruction: bool = True) -> float:
    """Floating-point operations of one sample's forward pass, a multiplication and an addition counted as two.

    Counts matrix products and convolutions, as is usual: both passes of the vision tower, text tower, decoder. Found by
    ``torch.utils.flop_counter`` on tensors that hold no memory.

    Args:
        config: the network.
        words: tokens of a caption.
        reconstruction: whether the pass over visible patches and the decoder are run.
    """
    with torch.device("meta"):
        model = SegCLIP(config, load_init=False).train()
        noise = InjectedNoise(
            torch.empty(1, config.centers, config.patches),
            torch.empty(1, config.centers, config.visible_patches(config.patches)),
            torch.empty(1, config.patches),
        )
        images = torch.empty(1, 3, config.image_size, config.image_size)
        tokens = torch.empty(1, words, dtype=torch.int64)
        superpixels = torch.empty(1, config.patches, dtype=torch.int64)
    model._look_at_content = lambda tensor: False  # type: ignore[method-assign]  # there is none on this device
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that Triton does not run on this device
        model(images, tokens, superpixels, noise, with_reconstruction=reconstruction)
    return float(counter.get_total_flops())


def training_flops(config: ModelConfig, words: int, *, reconstruction: bool = True) -> float:
    """Of one sample's forward and backward pass: three times the forward's, as the backward of a matrix product is two
    of its size. What is computed twice (activation checkpointing, cached features) is not counted twice."""
    return 3 * forward_flops(config, words, reconstruction=reconstruction)
