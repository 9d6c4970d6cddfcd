"""Contrastive loss of images and texts over the batch of a whole process group.

    u, w    = image and text features, each row divided by its length
    a[i, j] = s * u[i] . w[j]                             (s temperature, already exponentiated and clamped)
    loss    = 1/2 * mean_i ( -log softmax_j a[i, j] at j = i )    images look for their text among all texts
            + 1/2 * mean_i ( -log softmax_j a[j, i] at j = i )    texts look for their image among all images

Shapes: features [B, E] on each of W ranks, N = W * B columns; rank r owns rows r * B ... (r + 1) * B - 1 of
the global batch. Each rank computes its own rows against all columns, so no rank holds the N x N matrix.
Everything in float32.

Gradients: gathering is differentiable, so a rank's features receive gradients from the losses of all ranks.
The gradient with respect to parameters, *averaged* over ranks (what DistributedDataParallel and DeepSpeed
do), is that of the mean loss of the global batch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

__all__ = ["contrastive_loss", "contrastive_loss_reference", "gather_rows"]


class _GatherRows(torch.autograd.Function):
    """Rows of all ranks in rank order; the backward sums what every rank owes to one's own rows."""

    @staticmethod
    def forward(ctx: Any, rows_BE: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group, ctx.rows = group, rows_BE.shape[0]
        parts = [torch.empty_like(rows_BE) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, rows_BE.contiguous(), group=group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad_NE: Tensor) -> tuple[Tensor, None]:
        total_NE = grad_NE.contiguous().clone()
        dist.all_reduce(total_NE, group=ctx.group)
        start = dist.get_rank(ctx.group) * ctx.rows
        return total_NE[start : start + ctx.rows], None


def gather_rows(rows_BE: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Rows of all ranks of ``group``, [W * B, E] in rank order, differentiable; all must pass the same B."""
    gathered: Tensor = _GatherRows.apply(rows_BE, group)
    return gathered


def contrastive_loss(
    image_BE: Tensor,
    text_BE: Tensor,
    logit_scale: Tensor,
    *,
    group: dist.ProcessGroup | None = None,
    exclude_BN: Tensor | None = None,
    exclude_text_BN: Tensor | None = None,
) -> Tensor:
    """This rank's contrastive loss, a float32 scalar; see the top of this file.

    Args:
        image_BE: image features of this rank, any length.
        text_BE: text features of this rank, any length.
        logit_scale: scalar that multiplies the cosines.
        group: process group whose ranks make up the global batch; None for this process alone.
        exclude_BN: bool; true where text j is left out when image i (a row of this rank) looks for its text.
            The pair of a row with itself is never left out.
        exclude_text_BN: the same for text i looking among images j; None takes ``exclude_BN``.

    Raises:
        ValueError: shapes that do not go together.
    """
    if image_BE.ndim != 2 or image_BE.shape != text_BE.shape:
        raise ValueError(
            "image and text features must have one shape [B, E], "
            f"got {list(image_BE.shape)} and {list(text_BE.shape)}"
        )
    if image_BE.shape[0] == 0:
        raise ValueError("the contrastive loss needs at least one pair, got a batch of 0")
    world = dist.get_world_size(group) if group is not None else 1
    expected = (image_BE.shape[0], image_BE.shape[0] * world)
    for name, exclude in (("exclude_BN", exclude_BN), ("exclude_text_BN", exclude_text_BN)):
        if exclude is not None and (exclude.dtype != torch.bool or exclude.shape != expected):
            raise ValueError(
                f"{name} must be bool {list(expected)}, got {exclude.dtype} {list(exclude.shape)}"
            )
    return contrastive_loss_reference(
        image_BE, text_BE, logit_scale, group=group, exclude_BN=exclude_BN, exclude_text_BN=exclude_text_BN
    )


def contrastive_loss_reference(
    image_BE: Tensor,
    text_BE: Tensor,
    logit_scale: Tensor,
    *,
    group: dist.ProcessGroup | None = None,
    exclude_BN: Tensor | None = None,
    exclude_text_BN: Tensor | None = None,
) -> Tensor:
    """Plain torch definition of ``contrastive_loss``."""
    compute = torch.promote_types(image_BE.dtype, torch.float32)
    image_BE = F.normalize(image_BE.to(compute), dim=-1)
    text_BE = F.normalize(text_BE.to(compute), dim=-1)
    all_image_NE, all_text_NE, offset = image_BE, text_BE, 0
    if group is not None and dist.get_world_size(group) > 1:
        # One collective for both sides: half as many round trips.
        both_N2E = gather_rows(torch.stack([image_BE, text_BE], dim=1), group)
        all_image_NE, all_text_NE = both_N2E.unbind(dim=1)
        offset = dist.get_rank(group) * image_BE.shape[0]
    scale = logit_scale.to(compute)
    image_logits_BN = scale * image_BE @ all_text_NE.T
    text_logits_BN = scale * text_BE @ all_image_NE.T
    own_B = torch.arange(image_BE.shape[0], device=image_BE.device) + offset
    if exclude_BN is not None:
        image_logits_BN = _leave_out(image_logits_BN, exclude_BN, own_B)
    if exclude_text_BN is None:
        exclude_text_BN = exclude_BN
    if exclude_text_BN is not None:
        text_logits_BN = _leave_out(text_logits_BN, exclude_text_BN, own_B)
    return (F.cross_entropy(image_logits_BN, own_B) + F.cross_entropy(text_logits_BN, own_B)) / 2


def _leave_out(logits_BN: Tensor, exclude_BN: Tensor, own_B: Tensor) -> Tensor:
    keep_own_BN = torch.zeros_like(exclude_BN).scatter_(1, own_B[:, None], True)
    return logits_BN.masked_fill(exclude_BN & ~keep_own_BN, float("-inf"))
