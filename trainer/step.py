"""One optimiser step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from segclip.data_pipelines.samples import Batch
from segclip.kernels.contrastive import contrastive_loss, gather_rows
from segclip.models.losses import LossConfig, false_negatives
from segclip.models.noise import KeyedNoise
from segclip.models.outputs import TrainOutput
from segclip.trainer.engine import gradient_norm

__all__ = ["StepResult", "total_loss", "train_step"]


@dataclass(frozen=True)
class StepResult:
    """What a step tells about itself. Losses are this rank's and lie on its device."""

    losses: dict[str, Tensor]
    gradient_norm: float
    logit_scale: Tensor
    used_centers: Tensor
    """Share of centers that hold at least one patch."""


def train_step(engine: Any, batch: Batch, seed: int, config: LossConfig) -> StepResult:
    """Forward, global contrastive loss, backward, optimiser step."""
    device = engine.device
    output: TrainOutput = engine(
        batch.images.to(device, non_blocking=True),
        batch.tokens.to(device, non_blocking=True),
        batch.superpixels.to(device, non_blocking=True) if config.superpixel_kl > 0 else None,
        KeyedNoise(seed, batch.positions.to(device, non_blocking=True)),
        with_superpixel=config.superpixel_kl > 0,
        with_reconstruction=config.reconstruction > 0,
        with_text_reconstruction=config.text_reconstruction > 0,
    )
    losses = total_loss(output, batch, config, dist.group.WORLD)
    engine.backward(losses["total"])
    norm = gradient_norm(engine, engine.step)
    return StepResult(
        losses={name: value.detach() for name, value in losses.items()},
        gradient_norm=norm,
        logit_scale=output.logit_scale.detach(),
        used_centers=output.hard_BGL.detach().amax(dim=2).mean(),
    )


def total_loss(
    output: TrainOutput, batch: Batch, config: LossConfig, group: dist.ProcessGroup | None
) -> dict[str, Tensor]:
    """The loss parts of this rank, unweighted, and their weighted ``total``.

    The contrastive part sees the whole batch of ``group``; its gradient averaged over ranks is that of the global loss.
    """
    device = output.image_embed_BE.device
    exclude_BN = None
    if config.skip_false_negatives:
        texts_NT = texts_BT = batch.tokens.to(device)
        if group is not None:
            texts_NT = gather_rows(texts_BT, group)
        exclude_BN = false_negatives(batch.caption_tokens.to(device), texts_NT)
    losses = {
        "contrastive": contrastive_loss(
            output.image_embed_BE,
            output.text_embed_BE,
            output.logit_scale,
            group=group,
            ring=config.ring,
            exclude_BN=exclude_BN,
        ),
        "superpixel_kl": output.loss_superpixel,
        "reconstruction": output.loss_reconstruction,
    }
    if config.text_reconstruction > 0:
        losses["text_reconstruction"] = output.loss_text_reconstruction
    losses["total"] = torch.stack([getattr(config, name) * value for name, value in losses.items()]).sum()
    return losses
