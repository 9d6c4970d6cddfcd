"""Contrastive loss of images and texts over the batch of a whole process group.

    u, w    = image and text features, each row divided by its length
    a[i, j] = s * u[i] . w[j]                             (s temperature, already exponentiated and clamped)
    loss    = 1/2 * mean_i ( log sum_j exp(a[i, j] - a[i, i]) )    images look for their text among all texts
            + 1/2 * mean_j ( log sum_i exp(a[i, j] - a[j, j]) )    texts look for their image among all images

Shapes: features [B, E] on each of W ranks, N = W * B columns; rank r owns rows r * B ... (r + 1) * B - 1 of
the global batch.
Types: features in float32, bfloat16 or float64, and rounded to their type again once they have length one; sums and
loss in float32 (float64 for float64).

Each rank computes the logits of its own images with all texts, in blocks that are used for both directions and thrown
away; the backward computes them once more. Memory is O(N * E), or O(B * E) by the ring: never [B, N]. How a block is
computed is in ``contrastive_tiles`` and ``contrastive_triton``, how ranks work together in ``contrastive_ranks``.

Gradients: a rank's features receive gradients from the losses of all ranks. The gradient with respect to parameters,
*averaged* over ranks (what DistributedDataParallel and DeepSpeed do), is that of the mean loss of the global batch.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from segclip.kernels.contrastive_ranks import gather_rows, rank_terms
from segclip.kernels.contrastive_tiles import pair_terms
from segclip.kernels.dispatch import use_triton

__all__ = ["contrastive_loss", "contrastive_loss_reference", "contrastive_loss_unchecked", "gather_rows"]


def contrastive_loss(
    image_BE: Tensor,
    text_BE: Tensor,
    logit_scale: Tensor,
    *,
    group: dist.ProcessGroup | None = None,
    ring: bool = False,
    exclude_BN: Tensor | None = None,
) -> Tensor:
    """This rank's contrastive loss, a float32 scalar; see the top of this file.

    Args:
        image_BE: image features of this rank, any length.
        text_BE: text features of this rank, any length.
        logit_scale: scalar that multiplies the cosines.
        group: process group whose ranks make up the global batch, with the same B each; None for this process alone.
        ring: pass texts from rank to rank instead of gathering them: less memory, for very large batches.
        exclude_BN: bool; true where image i of this rank and text j of all are no negatives of each other: neither
            finds the other among what it looks through. A pair is never left out.

    Raises:
        ValueError: shapes, types or devices that do not go together; on a CPU, and where no gradient is wanted, also
            values that are not finite.
    """
    world = dist.get_world_size(group) if group is not None else 1
    _check(image_BE, text_BE, logit_scale, world, exclude_BN)
    loss = contrastive_loss_unchecked(
        image_BE, text_BE, logit_scale, use_triton(image_BE), group=group, ring=ring, exclude_BN=exclude_BN
    )
    # As elsewhere, a training step does not wait for its device.
    if loss.device.type == "cpu" or not torch.is_grad_enabled():
        _check_finite(loss, image_BE, text_BE, logit_scale)
    return loss


def contrastive_loss_unchecked(
    image_BE: Tensor,
    text_BE: Tensor,
    logit_scale: Tensor,
    kernels: bool,
    *,
    group: dist.ProcessGroup | None = None,
    ring: bool = False,
    exclude_BN: Tensor | None = None,
) -> Tensor:
    """``contrastive_loss`` for checked arguments, by the Triton kernels or by plain torch."""
    image_unit_BE, text_unit_BE = _unit_rows(image_BE), _unit_rows(text_BE)
    scale = logit_scale.reshape(()).to(torch.promote_types(image_BE.dtype, torch.float32))
    own_B = _own_logits(image_unit_BE.detach(), text_unit_BE.detach(), scale.detach())
    if group is None or dist.get_world_size(group) == 1:
        row_B, column_B = pair_terms(image_unit_BE, text_unit_BE, scale, own_B, own_B, exclude_BN, 0, kernels)
    else:
        row_B, column_B = rank_terms(
            image_unit_BE, text_unit_BE, scale, own_B, exclude_BN, group, ring=ring, kernels=kernels
        )
    loss: Tensor = (row_B.mean() + column_B.mean()) / 2
    return loss


def contrastive_loss_reference(
    image_BE: Tensor, text_BE: Tensor, logit_scale: Tensor, *, exclude_BN: Tensor | None = None
) -> Tensor:
    """The definition for one process, with all logits in memory; arguments as of ``contrastive_loss``."""
    compute = torch.promote_types(image_BE.dtype, torch.float32)
    image_BE, text_BE = _unit_rows(image_BE).to(compute), _unit_rows(text_BE).to(compute)
    logits_BB = logit_scale.to(compute) * image_BE @ text_BE.T
    if exclude_BN is not None:
        pairs_BB = torch.eye(len(exclude_BN), dtype=torch.bool, device=exclude_BN.device)
        logits_BB = logits_BB.masked_fill(exclude_BN & ~pairs_BB, float("-inf"))
    own_B = torch.arange(len(image_BE), device=image_BE.device)
    return (F.cross_entropy(logits_BB, own_B) + F.cross_entropy(logits_BB.T, own_B)) / 2


def _unit_rows(rows_BE: Tensor) -> Tensor:
    """Rows of length one, or zero. Lengths are at least float32, and no other copy of that type is kept."""
    compute = torch.promote_types(rows_BE.dtype, torch.float32)
    length_B1 = torch.linalg.vector_norm(rows_BE, dim=1, keepdim=True, dtype=compute).clamp_min(1e-12)
    return (rows_BE / length_B1).to(rows_BE.dtype)


def _own_logits(image_BE: Tensor, text_BE: Tensor, scale: Tensor) -> Tensor:
    """Logit of each pair."""
    return scale * torch.linalg.vecdot(image_BE.to(scale.dtype), text_BE.to(scale.dtype))


def _check(
    image_BE: Tensor,
    text_BE: Tensor,
    logit_scale: Tensor,
    world: int,
    exclude_BN: Tensor | None,
) -> None:
    if image_BE.ndim != 2 or image_BE.shape != text_BE.shape:
        raise ValueError(
            "image_BE and text_BE must have one shape [B, E], "
            f"got {list(image_BE.shape)} and {list(text_BE.shape)}"
        )
    if image_BE.numel() == 0:
        raise ValueError(f"image_BE and text_BE must hold at least one pair, got {list(image_BE.shape)}")
    if image_BE.dtype != text_BE.dtype or not image_BE.dtype.is_floating_point:
        raise ValueError(
            f"image_BE and text_BE must have one floating-point type, got {image_BE.dtype} and {text_BE.dtype}"
        )
    if logit_scale.numel() != 1:
        raise ValueError(f"logit_scale must be a scalar, got {list(logit_scale.shape)}")
    expected = (image_BE.shape[0], image_BE.shape[0] * world)
    if exclude_BN is not None and (exclude_BN.dtype != torch.bool or exclude_BN.shape != expected):
        raise ValueError(
            f"exclude_BN must be bool {list(expected)}, got {exclude_BN.dtype} {list(exclude_BN.shape)}"
        )
    for name, tensor in {"text_BE": text_BE, "logit_scale": logit_scale, "exclude_BN": exclude_BN}.items():
        if tensor is not None and tensor.device != image_BE.device:
            raise ValueError(f"{name} must be on {image_BE.device} like image_BE, got {tensor.device}")


def _check_finite(loss: Tensor, image_BE: Tensor, text_BE: Tensor, logit_scale: Tensor) -> None:
    """Look for the culprit only where the loss shows that there is one, on this rank or another."""
    if torch.isfinite(loss):
        return
    for name, tensor in {"logit_scale": logit_scale, "image_BE": image_BE, "text_BE": text_BE}.items():
        count = int((~torch.isfinite(tensor)).sum())
        if count:
            raise ValueError(f"{name} must be finite, but {count} of its {tensor.numel()} values are not")
    raise ValueError("logits must be finite, but image_BE, text_BE or logit_scale of another rank is not")
