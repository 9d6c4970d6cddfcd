"""The network: vision tower, text tower, reconstruction decoder, and the losses computed from a rank's own
samples.

Shape letters: B batch, E shared embedding, G centers, L patches, T words.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from segclip.kernels.masked_decoder import masked_pixel_loss
from segclip.kernels.superpixel_kl import superpixel_kl
from segclip.models.config import ModelConfig
from segclip.models.hub import SegCLIPHubMixin
from segclip.models.initialise import initialise
from segclip.models.inputs import check_images, check_superpixels, check_tokens
from segclip.models.noise import Noise
from segclip.models.outputs import TrainOutput, VisionOutput
from segclip.models.reconstruction import MaskedImageDecoder
from segclip.models.text import TextTower
from segclip.models.text_reconstruction import MaskedTextDecoder, masked_word_loss, valid_words
from segclip.models.vision import VisionTower

__all__ = ["LARGEST_LOGIT_SCALE", "SegCLIP"]

LARGEST_LOGIT_SCALE = 100.0


class SegCLIP(nn.Module, SegCLIPHubMixin):
    """Learns to gather the patches of an image into regions from pairs of images and captions."""

    _pixel_factor: Tensor
    _pixel_shift: Tensor

    def __init__(self, config: ModelConfig, *, load_init: bool = True) -> None:
        """
        Args:
            load_init: start from the weights that ``config.init_from`` names, if it names any; see
                ``segclip.models.pretrained.load_clip`` for errors. False: for a caller that is about to load
                all weights.
        """
        super().__init__()
        self.config = config
        # What is known of the weights: kept in exports and shown in model cards.
        self.card: dict[str, Any] = {}
        self.vision = VisionTower(config)
        self.text = TextTower(config)
        self.decoder = MaskedImageDecoder(config)
        self.text_decoder = MaskedTextDecoder(config) if config.text_reconstruction else None
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        # Not in checkpoints: the configuration tells them.
        factor, shift = _pixel_line(config)
        self.register_buffer("_pixel_factor", factor, persistent=False)
        self.register_buffer("_pixel_shift", shift, persistent=False)
        initialise(self)
        if load_init and config.init_from is not None:
            from segclip.models.pretrained import load_clip

            load_clip(self, config.init_from)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        # They follow the network to another device, but not into bfloat16, which would round them.
        self._pixel_factor, self._pixel_shift = _pixel_line(self.config, self._pixel_factor.device)
        return self

    @property
    def dtype(self) -> torch.dtype:
        """Type of the parameters."""
        return self.logit_scale.dtype

    def encode_image(self, images_BCHW: Tensor, noise: Noise | None = None) -> VisionOutput:
        """Encode images of any size that the patch divides.

        Args:
            images_BCHW: uint8, normalised here, or float, already normalised.
            noise: random choices of a training pass; None evaluates: no noise and no temperature.

        Raises:
            ValueError: see ``check_images``.
        """
        check_images(images_BCHW, self.config, self._look_at_content(images_BCHW))
        gumbel = noise.gumbel_main() if noise is not None else None
        main: VisionOutput = self.vision(self.normalise(images_BCHW), gumbel).main
        return main

    def encode_text(self, tokens_BT: Tensor) -> Tensor:
        """Features of texts in the shared space, [B, E], not normalised.

        Raises:
            ValueError: see ``check_tokens``.
        """
        check_tokens(tokens_BT, self.config, self._look_at_content(tokens_BT))
        embed_BE: Tensor = self.text(tokens_BT).text_embed_BE
        return embed_BE

    def forward(
        self,
        images_BCHW: Tensor,
        tokens_BT: Tensor,
        superpixels_BL: Tensor | None = None,
        noise: Noise | None = None,
        *,
        with_superpixel: bool = True,
        with_reconstruction: bool = True,
        with_text_reconstruction: bool = False,
    ) -> TrainOutput:
        """One training pass: features of both sides and the losses that need no other rank.

        Args:
            images_BCHW: uint8, normalised here, or float, already normalised.
            tokens_BT: int64 token ids.
            superpixels_BL: integer superpixel id of each patch; needed for the superpixel loss.
            noise: random choices; needed for the reconstruction loss. None: no Gumbel noise and no
                temperature.
            with_superpixel: compute the superpixel loss; otherwise it is 0 and costs nothing.
            with_reconstruction: compute the reconstruction loss; otherwise it is 0 and costs nothing.
            with_text_reconstruction: compute the text reconstruction loss, for which the network must have
                been built; otherwise it is 0 and costs nothing.

        Raises:
            ValueError: see ``check_images``, ``check_tokens`` and ``check_superpixels``; or a loss lacks its
                input. Values (pixels that are not finite, token ids outside the vocabulary) are not looked at
                while training on a GPU, where each look would make the step wait for the device.
        """
        config = self.config
        content = self._look_at_content(images_BCHW)
        check_images(images_BCHW, config, content)
        check_tokens(tokens_BT, config, content)
        if tokens_BT.shape[0] != images_BCHW.shape[0]:
            raise ValueError(f"got {images_BCHW.shape[0]} images but {tokens_BT.shape[0]} texts")
        if superpixels_BL is not None:
            check_superpixels(superpixels_BL, images_BCHW, config)
        elif with_superpixel:
            raise ValueError("the superpixel loss needs superpixels: give them or set with_superpixel=False")
        if noise is None and with_reconstruction:
            raise ValueError("the reconstruction loss needs noise: give it or set with_reconstruction=False")

        patches = (images_BCHW.shape[2] // config.patch_size) * (images_BCHW.shape[3] // config.patch_size)
        order_BL = None
        if with_reconstruction and noise is not None:
            order_BL = noise.mask_scores(patches).argsort(dim=1, stable=True)
        kept_BL, keep_BR = self._dropped(noise, patches)
        tower = self.vision(
            self.normalise(images_BCHW),
            noise.gumbel_main() if noise is not None else None,
            kept_BL,
            order_BL,
            noise.gumbel_masked() if noise is not None and order_BL is not None else None,
            keep_BR,
        )
        assignment = tower.main.assignment
        zero = assignment.logits_BGL.new_zeros(())

        loss_superpixel = loss_reconstruction = zero
        if with_superpixel and superpixels_BL is not None:
            seen_BL = superpixels_BL if kept_BL is None else superpixels_BL.gather(1, kept_BL)
            loss_superpixel = superpixel_kl(assignment.hard_BGL, seen_BL)
        if tower.masked is not None:
            prediction_BMP = self.decoder(tower.masked.hidden_BKC, tower.masked.order_BL, tower.main.grid)
            loss_reconstruction = masked_pixel_loss(
                prediction_BMP,
                images_BCHW,
                tower.masked.order_BL[:, tower.masked.hidden_BKC.shape[1] :],
                config.patch_size,
                config.image_mean,
                config.image_std,
            )
        loss_text_reconstruction = zero
        if with_text_reconstruction:
            loss_text_reconstruction = self._reconstruct_text(tokens_BT, noise)
        return TrainOutput(
            image_embed_BE=tower.main.image_embed_BE,
            text_embed_BE=self.text(tokens_BT).text_embed_BE,
            logit_scale=self.temperature(),
            loss_superpixel=loss_superpixel,
            loss_reconstruction=loss_reconstruction,
            loss_text_reconstruction=loss_text_reconstruction,
            vision=tower.main,
            masked=tower.masked,
        )

    def temperature(self) -> Tensor:
        """Float32 scalar that multiplies cosines: exponentiated, and clamped here, not in the parameter."""
        return self.logit_scale.float().exp().clamp(max=LARGEST_LOGIT_SCALE).reshape(())

    def _reconstruct_text(self, tokens_BT: Tensor, noise: Noise | None) -> Tensor:
        if self.text_decoder is None:
            raise ValueError(
                "the text reconstruction loss needs a network built with text_reconstruction=True"
            )
        if noise is None:
            raise ValueError("the text reconstruction loss needs noise: give it or switch the loss off")
        order_BT = noise.word_order(tokens_BT)
        visible = self.config.visible_words(tokens_BT.shape[1])
        hidden_BKE = self.text(tokens_BT, with_hidden=True, visible_BK=order_BT[:, :visible]).hidden_BTE
        logits_BTV = self.text_decoder(hidden_BKE, order_BT, valid_words(tokens_BT))
        return masked_word_loss(logits_BTV, tokens_BT, order_BT, visible)

    def normalise(self, images_BCHW: Tensor) -> Tensor:
        """Images as the vision tower takes them, in the parameters' type: uint8 normalised in float32, float as is."""
        if images_BCHW.dtype != torch.uint8:
            return images_BCHW.to(self.dtype)
        return torch.addcmul(self._pixel_shift, images_BCHW.float(), self._pixel_factor).to(self.dtype)

    def _dropped(self, noise: Noise | None, patches: int) -> tuple[Tensor | None, Tensor | None]:
        """Patches that patch dropout keeps (None: all), and factors of the residual branches (None: 1)."""
        if noise is None or not self.training:
            return None, None
        kept_BL = keep_BR = None
        if self.config.patch_dropout > 0:
            kept = self.config.kept_patches(patches)
            # Back in image order: neighbours stay neighbours, which is kinder to caches and to the eye.
            kept_BL = noise.patch_dropout(patches).argsort(dim=1, stable=True)[:, :kept].sort(dim=1).values
        if self.config.drop_path > 0:
            uniform_BR = noise.drop_path(self.vision.branches)
            rates_R = self._drop_rates(uniform_BR)
            keep_BR = (uniform_BR >= rates_R) / (1 - rates_R)
        return kept_BL, keep_BR

    def _drop_rates(self, like: Tensor) -> Tensor:
        """Chance of skipping each branch: rises linearly over the depth, the same in both passes."""
        rates = torch.linspace(0, self.config.drop_path, self.config.vision_layers, device=like.device)
        return rates.repeat_interleave(2).repeat(2)

    def _look_at_content(self, tensor: Tensor) -> bool:
        """Whether to check values as well as shapes: not where a training step would wait for its device."""
        return not (torch.compiler.is_compiling() or (self.training and getattr(tensor, "is_cuda", False)))


def _pixel_line(config: ModelConfig, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Factor and shift, float32 [3, 1, 1], that turn pixels (0 to 255) into normalised values."""
    mean, std = (
        torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]
        for values in (config.image_mean, config.image_std)
    )
    return 1 / (255.0 * std), -mean / std
