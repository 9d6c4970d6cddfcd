"""A closer look at the network while it trains: what each loss pulls on, and which patches each center holds.

It looks at a plain float32 copy of the network (``scoring.plain_copy``), so it neither disturbs the run nor depends on
how ZeRO divides parameters. Every rank helps to make the copy; the first one looks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from segclip.data_pipelines.samples import Batch
from segclip.eval.inference import patches_to_pixels
from segclip.eval.reports.drawing import overlay
from segclip.eval.reports.palette import palette
from segclip.kernels.contrastive import contrastive_loss
from segclip.models.noise import KeyedNoise
from segclip.models.segclip import SegCLIP
from segclip.trainer.config import RunConfig
from segclip.trainer.distributed import Ranks, agreed
from segclip.trainer.micro_batches import split_batch
from segclip.trainer.optimizer import freeze, frozen_parameters, parameter_groups
from segclip.trainer.prefetch import moved
from segclip.trainer.scoring import plain_copy
from segclip.trainer.tracking import Tracker

__all__ = ["assignment_picture", "gradient_norms", "look"]

# Samples that gradients are taken of, and images that are drawn.
SAMPLES, IMAGES = 32, 8


def look(
    config: RunConfig, engine: Any, batch: Batch, step: int, tracker: Tracker | None, ranks: Ranks
) -> dict[str, float]:
    """Metrics of ``gradient_norms``, and the picture of ``assignment_picture`` in the run's folder and in MLflow.

    Called by every rank, which all wait for the first; empty on the others.

    Raises:
        RankError: the picture cannot be written.
    """
    model = plain_copy(engine, config.model, ranks.device)

    def first() -> dict[str, float]:
        few = moved(split_batch(batch, SAMPLES)[0], ranks.device)
        metrics = gradient_norms(model, few, config)
        folder = Path(config.run_dir) / "assignments"
        folder.mkdir(exist_ok=True)
        path = folder / f"step-{step:08d}.png"
        assignment_picture(model, few.images[:IMAGES]).save(path)
        if tracker is not None:
            tracker.metrics(metrics, step)
            tracker.artifact(path, "assignments")
        return metrics

    return agreed(ranks, lambda: first() if ranks.is_first else {})


def gradient_norms(model: SegCLIP, batch: Batch, config: RunConfig) -> dict[str, float]:
    """Norm of the gradient of each loss part, and of their sum for each group of the optimiser.

    Of the samples given alone, so the contrastive loss has only them as negatives: numbers to compare with each other
    and over time, not with ``gradient_norm``, which is that of the whole batch.

    Args:
        model: whole, in float32; its gradients are left empty.
        batch: some samples, on the device of the model.
        config: weights of the losses, groups, seed.

    Returns:
        ``gradient/loss/NAME``, each loss times its weight, and ``gradient/group/NAME``.
    """
    freeze(model, frozen_parameters(config.optimizer, config.model))
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    output = model(
        batch.images,
        batch.tokens,
        batch.superpixels if config.loss.superpixel_kl > 0 else None,
        KeyedNoise(config.seed, batch.positions),
        with_superpixel=config.loss.superpixel_kl > 0,
        with_reconstruction=config.loss.reconstruction > 0,
        with_text_reconstruction=config.loss.text_reconstruction > 0,
    )
    losses = {
        "contrastive": contrastive_loss(output.image_embed_BE, output.text_embed_BE, output.logit_scale),
        "superpixel_kl": output.loss_superpixel,
        "reconstruction": output.loss_reconstruction,
        "text_reconstruction": output.loss_text_reconstruction,
    }
    total = {id(parameter): torch.zeros_like(parameter) for parameter in parameters}
    found = {}
    for name, loss in losses.items():
        weight = getattr(config.loss, name)
        if weight == 0:
            continue
        gradients = torch.autograd.grad(weight * loss, parameters, retain_graph=True, allow_unused=True)
        own = [gradient for gradient in gradients if gradient is not None]
        found[f"gradient/loss/{name}"] = _norm(own)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                total[id(parameter)] += gradient
    for group in parameter_groups(model, config.optimizer):
        found[f"gradient/group/{group['name']}"] = _norm([total[id(each)] for each in group["params"]])
    model.eval()
    return found


@torch.no_grad()
def assignment_picture(model: SegCLIP, images_BCHW: Tensor, side: int = 224) -> Image.Image:
    """Images above the centers their patches are assigned to, each center in its colour, in all pictures the same.

    Args:
        model: in evaluation mode.
        images_BCHW: uint8.
        side: of each image in the picture, in pixels.
    """
    vision = model.encode_image(images_BCHW)
    height, width = images_BCHW.shape[-2:]
    labels_BHW = (
        patches_to_pixels(vision.assignment.hard_BGL, vision.grid, (height, width))
        .argmax(dim=1)
        .cpu()
        .numpy()
    )
    names = [str(center) for center in range(model.config.centers)]
    colours = palette(model.config.centers)
    gap = 8
    page = Image.new("RGB", (len(images_BCHW) * (side + gap) + gap, 2 * (side + gap) + gap), "white")
    for number, (image_CHW, label_HW) in enumerate(zip(images_BCHW.cpu(), labels_BHW, strict=True)):
        image_HW3 = np.ascontiguousarray(image_CHW.permute(1, 2, 0).numpy())
        left = gap + number * (side + gap)
        page.paste(Image.fromarray(image_HW3).resize((side, side), Image.Resampling.BICUBIC), (left, gap))
        page.paste(overlay(image_HW3, label_HW, names, colours, side=side), (left, side + 2 * gap))
    return page


def _norm(tensors: list[Tensor]) -> float:
    return float(torch.nn.utils.get_total_norm(tensors)) if tensors else 0.0
