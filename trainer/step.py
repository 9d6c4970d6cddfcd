"""One optimiser step over a batch of any size.

The contrastive loss joins all samples of the batch: those of all ranks and of all micro-batches. So a batch that does
not fit into one pass cannot be accumulated micro-batch by micro-batch. With x_m the samples of micro-batch m, f the
towers, z = (f(x_1), ..., f(x_M)) the features of the whole batch, C the contrastive loss, s the temperature and R_m
the losses that each sample has of its own:

    L(w)  = C(z(w), s(w)) + sum_m R_m(w)
    dL/dw = sum_m ( dC/dz_m df(x_m)/dw + dR_m/dw )  +  dC/ds ds/dw

    1. z, micro-batch by micro-batch, without graph and without any work for R
    2. C and its gradients for z and s, over all ranks
    3. for each micro-batch f(x_m) once more, and backward from the scalar  <dC/dz_m, f(x_m)> + R_m  (+ dC/ds s, once)
    4. one reduction of gradients, one step of the optimiser

(Gao et al., "Scaling deep contrastive learning batch size under memory limited setup", 2021.) That is the gradient of
the whole batch, to rounding. Noise is a function of seed and sample, so the second pass draws what the first one drew.
When the batch fits, one pass does it all.

R_m carries the share of the batch's mean that its samples make up. Superpixel KL and pixel reconstruction have as many
terms in each sample: n_m of a rank's n. Word reconstruction is a mean over hidden words, which differ in number: h_m
of the h of all ranks, times the number of ranks, over which gradients and reported losses are averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from segclip.data_pipelines.samples import Batch
from segclip.kernels.contrastive import contrastive_loss, gather_rows
from segclip.models.losses import LossConfig, false_negatives
from segclip.models.noise import KeyedNoise
from segclip.models.outputs import TrainOutput
from segclip.models.text_reconstruction import hidden_words
from segclip.trainer.engine import gradient_norm
from segclip.trainer.micro_batches import split_batch
from segclip.trainer.reduction import one_reduction
from segclip.trainer.timing import StepTimer

__all__ = ["CenterUse", "Gradients", "StepResult", "compute_gradients", "train_step"]


class CenterUse(NamedTuple):
    """How the centers are used. Means over ranks are those of the batch."""

    used: Tensor
    """Share of the centers of an image that hold at least one patch: scalar."""
    share_G: Tensor
    """Share of all patches that each center holds, float32 [G]; sums to 1."""


@dataclass(frozen=True)
class Gradients:
    """What is known of the batch when all gradients are there. Means over ranks are those of the batch."""

    losses: dict[str, Tensor]
    """Loss parts, unweighted, and their weighted ``total``; detached, on this rank's device."""
    logit_scale: Tensor
    centers: CenterUse


@dataclass(frozen=True)
class StepResult(Gradients):
    """What a step tells about itself."""

    gradient_norm: float


def train_step(
    engine: Any,
    batch: Batch,
    seed: int,
    config: LossConfig,
    micro_batch: int | None = None,
    timer: StepTimer | None = None,
) -> StepResult:
    """Gradients of the global batch, then the optimiser step; arguments as of ``compute_gradients``.

    Args:
        timer: gets the parts ``features`` (of cached steps), ``forward``, ``backward`` (with what of the reduction
            overlaps with it), ``reduce`` (of cached steps) and ``optimizer``.
    """
    timer = timer or StepTimer(engine.device)
    found = compute_gradients(engine, batch, seed, config, micro_batch, timer)
    with timer.part("optimizer"):
        norm = gradient_norm(engine, engine.step)
    return StepResult(found.losses, found.logit_scale, found.centers, norm)


def compute_gradients(
    engine: Any,
    batch: Batch,
    seed: int,
    config: LossConfig,
    micro_batch: int | None = None,
    timer: StepTimer | None = None,
) -> Gradients:
    """Forward, losses of the global batch, backward, and gradients averaged over ranks.

    Args:
        batch: samples of this rank, as many as each rank has, on the CPU or pinned there.
        micro_batch: samples of one forward pass; None for one pass over all. The same on all ranks.
        timer: see ``train_step``.
    """
    timer = timer or StepTimer(engine.device)
    parts = split_batch(batch, micro_batch or len(batch))
    shares = _shares(engine, parts, seed, config)
    if len(parts) == 1:
        return _one_pass(engine, batch, seed, config, shares[0], timer)
    return _cached_passes(engine, batch, parts, seed, config, shares, timer)


def _one_pass(
    engine: Any,
    batch: Batch,
    seed: int,
    config: LossConfig,
    shares: dict[str, Tensor | float],
    timer: StepTimer,
) -> Gradients:
    with timer.part("forward"):
        output = _forward(engine, batch, seed, config)
        losses = {
            "contrastive": _contrastive(
                batch, output.image_embed_BE, output.text_embed_BE, output.logit_scale, config
            ),
            **_own_losses(output, shares),
        }
        total = _weighted(losses, config)
    with timer.part("backward"):
        engine.backward(total)
    return Gradients(
        {name: value.detach() for name, value in losses.items()} | {"total": total.detach()},
        output.logit_scale.detach(),
        _center_use(output),
    )


def _cached_passes(
    engine: Any,
    batch: Batch,
    parts: Sequence[Batch],
    seed: int,
    config: LossConfig,
    shares: Sequence[dict[str, Tensor | float]],
    timer: StepTimer,
) -> Gradients:
    with timer.part("features"):
        features = [_features(engine, part, seed, config) for part in parts]
        leaves = [torch.cat([feature[side] for feature in features]) for side in (0, 1)] + [features[0][2]]
        image_BE, text_BE, logit_scale = (leaf.requires_grad_(True) for leaf in leaves)
        contrastive = _contrastive(batch, image_BE, text_BE, logit_scale, config)
        # Each gradient is of the order of one over the batch, too small for float16. A power of two changes no digit.
        spread = 2.0 ** (len(batch) - 1).bit_length()
        image_grad_BE, text_grad_BE, scale_grad = (
            gradient.float() / spread
            for gradient in torch.autograd.grad(
                config.contrastive * spread * contrastive, (image_BE, text_BE, logit_scale)
            )
        )

    losses: dict[str, Tensor] = {}
    centers: list[CenterUse] = []
    place = 0
    with ExitStack() as passes:
        sums = passes.enter_context(one_reduction(engine))
        for part, share in zip(parts, shares, strict=True):
            own = slice(place, place + len(part))
            with timer.part("forward"):
                output = _forward(engine, part, seed, config)
                own_losses = _own_losses(output, share)
                # Each of these has dC/d(...) as its gradient; that of the temperature is not to be counted M times.
                cached = (
                    torch.sum(output.image_embed_BE.float() * image_grad_BE[own])
                    + torch.sum(output.text_embed_BE.float() * text_grad_BE[own])
                    + output.logit_scale * (scale_grad if place == 0 else 0.0)
                )
            with timer.part("backward"):
                engine.backward(cached + _weighted(own_losses, config))
                sums.add()
            for name, value in own_losses.items():
                losses[name] = losses[name] + value.detach() if name in losses else value.detach()
            centers.append(_center_use(output, len(part) / len(batch)))
            place += len(part)
            del output, own_losses, cached  # not to be kept while the next micro-batch is computed
        with timer.part("reduce"):
            passes.close()
    losses = {"contrastive": contrastive.detach(), **losses}
    return Gradients(
        losses | {"total": _weighted(losses, config)},
        logit_scale.detach(),
        CenterUse(*(torch.stack(values).sum(0) for values in zip(*centers, strict=True))),
    )


def _forward(
    engine: Any, batch: Batch, seed: int, config: LossConfig, only_features: bool = False
) -> TrainOutput:
    """Forward pass of the network over samples that lie on the host."""
    device = engine.device
    with_superpixel = config.superpixel_kl > 0 and not only_features
    output: TrainOutput = engine(
        batch.images.to(device, non_blocking=True),
        batch.tokens.to(device, non_blocking=True),
        batch.superpixels.to(device, non_blocking=True) if with_superpixel else None,
        KeyedNoise(seed, batch.positions.to(device, non_blocking=True)),
        with_superpixel=with_superpixel,
        with_reconstruction=config.reconstruction > 0 and not only_features,
        with_text_reconstruction=config.text_reconstruction > 0 and not only_features,
    )
    return output


@torch.no_grad()
def _features(engine: Any, part: Batch, seed: int, config: LossConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Features of images and texts, and the temperature: all that is kept of a first pass."""
    output = _forward(engine, part, seed, config, only_features=True)
    return output.image_embed_BE, output.text_embed_BE, output.logit_scale


def _contrastive(
    batch: Batch, image_BE: Tensor, text_BE: Tensor, logit_scale: Tensor, config: LossConfig
) -> Tensor:
    """This rank's contrastive loss among the samples of all ranks.

    Its gradient averaged over ranks is that of the global loss.
    """
    group, exclude_BN = dist.group.WORLD, None
    assert group is not None
    if config.skip_false_negatives:
        texts_NT = gather_rows(batch.tokens.to(image_BE.device), group)
        exclude_BN = false_negatives(batch.caption_tokens.to(image_BE.device), texts_NT)
    return contrastive_loss(
        image_BE, text_BE, logit_scale, group=group, ring=config.ring, exclude_BN=exclude_BN
    )


def _shares(
    engine: Any, parts: Sequence[Batch], seed: int, config: LossConfig
) -> list[dict[str, Tensor | float]]:
    """For each micro-batch: what part of the batch's mean, times the number of ranks, its own mean is, by loss."""
    samples = sum(len(part) for part in parts)
    shares: list[dict[str, Tensor | float]] = [
        {"superpixel_kl": len(part) / samples, "reconstruction": len(part) / samples} for part in parts
    ]
    if config.text_reconstruction > 0:
        hidden_M = torch.stack([_hidden_count(engine, part, seed) for part in parts])
        hidden = hidden_M.sum()
        dist.all_reduce(hidden)
        for share, part_M in zip(shares, hidden_M / hidden.clamp_min(1) * dist.get_world_size(), strict=True):
            share["text_reconstruction"] = part_M
    return shares


def _hidden_count(engine: Any, part: Batch, seed: int) -> Tensor:
    """How many words the text reconstruction of these samples predicts: float32 scalar."""
    tokens_BT = part.tokens.to(engine.device, non_blocking=True)
    noise = KeyedNoise(seed, part.positions.to(engine.device, non_blocking=True))
    visible = engine.module.config.visible_words(tokens_BT.shape[1])
    return hidden_words(tokens_BT, noise.word_order(tokens_BT), visible).sum().float()


def _own_losses(output: TrainOutput, shares: dict[str, Tensor | float]) -> dict[str, Tensor]:
    """The losses that need no other sample, each times its share of the batch's mean."""
    means = {
        "superpixel_kl": output.loss_superpixel,
        "reconstruction": output.loss_reconstruction,
        "text_reconstruction": output.loss_text_reconstruction,
    }
    return {name: means[name] * share for name, share in shares.items()}


def _weighted(losses: dict[str, Tensor], config: LossConfig) -> Tensor:
    return torch.stack([getattr(config, name) * value for name, value in losses.items()]).sum()


def _center_use(output: TrainOutput, share: float = 1.0) -> CenterUse:
    """Use of the centers by some samples, times their share of the batch."""
    hard_BGL = output.hard_BGL.detach().float()
    return CenterUse(share * hard_BGL.amax(dim=2).mean(), share * hard_BGL.mean(dim=(0, 2)))
