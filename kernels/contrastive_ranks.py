"""The contrastive loss of a batch that lies in equal parts on the ranks of a process group.

Rank r keeps its images and computes the rectangle of them by all texts: each logit once on one rank. Texts come to
it in one of two ways:

    all-gather   all at once; one rectangle [B, W * B]
    ring         each rank's texts go from neighbour to neighbour; W squares [B, B], one rank's texts in memory. While
                 a square is computed, the texts of the next one are on their way; in the backward, so are the
                 gradients of the last one, which travel after their texts and gather a term on each rank.

Rows are then finished. A column has a part on each rank; the parts meet at the rank of its text. Only vectors
[W * B] are gathered in both ways.

B rows on each of W ranks, N = W * B.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from segclip.kernels.contrastive_tiles import pair_gradients, pair_terms

__all__ = ["gather_rows", "rank_terms"]


class _GatherRows(torch.autograd.Function):
    """Rows of all ranks in rank order; the backward sums what every rank owes to one's own rows."""

    @staticmethod
    def forward(ctx: Any, rows_BE: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _all_gather(rows_BE, group)

    @staticmethod
    def backward(ctx: Any, grad_NE: Tensor) -> tuple[Tensor, None]:
        return _reduce_scatter(grad_NE, ctx.group), None


def gather_rows(rows_BE: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Rows of all ranks of ``group``, [W * B, E] in rank order, differentiable; all must pass the same B."""
    gathered: Tensor = _GatherRows.apply(rows_BE, group)
    return gathered


def rank_terms(
    image_BE: Tensor,
    text_BE: Tensor,
    scale: Tensor,
    own_B: Tensor,
    exclude_BN: Tensor | None,
    group: dist.ProcessGroup,
    *,
    ring: bool,
    kernels: bool,
) -> tuple[Tensor, Tensor]:
    """Loss of each image and each text of this rank, both [B]; arguments as of ``pair_terms``.

    Features receive their gradients from the losses of all ranks. The gradient of the temperature is this rank's
    share, and the sum over ranks that of the sum of all losses.
    """
    row_B, column_B = _RankTerms.apply(image_BE, text_BE, scale, own_B, exclude_BN, group, ring, kernels)
    return row_B, column_B


class _RankTerms(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        image_BE: Tensor,
        text_BE: Tensor,
        scale: Tensor,
        own_B: Tensor,
        exclude_BN: Tensor | None,
        group: dist.ProcessGroup,
        ring: bool,
        kernels: bool,
    ) -> tuple[Tensor, Tensor]:
        ctx.group, ctx.ring, ctx.kernels = group, ring, kernels
        own_N = _all_gather(own_B, group)
        first = dist.get_rank(group) * len(own_B)
        row_B = torch.full_like(own_B, float("-inf"))
        part_N = torch.empty_like(own_N)
        for start, block_ME in _passing_texts(text_BE, group, ring):
            columns = slice(start, start + len(block_ME))
            block_row_B, part_N[columns] = pair_terms(
                image_BE, block_ME, scale, own_B, own_N[columns], _columns(exclude_BN, columns), first - start,
                kernels,
            )  # fmt: skip
            row_B = torch.logaddexp(row_B, block_row_B)
        part_WB = torch.empty_like(part_N)
        dist.all_to_all_single(part_WB, part_N, group=group)
        column_B = part_WB.view(-1, len(own_B)).logsumexp(dim=0)
        ctx.save_for_backward(image_BE, text_BE, scale, own_B, own_N, exclude_BN, row_B, column_B)
        return row_B, column_B

    @staticmethod
    def backward(ctx: Any, grad_row_B: Tensor, grad_column_B: Tensor) -> tuple[Tensor | None, ...]:
        image_BE, text_BE, scale, own_B, own_N, exclude_BN, row_B, column_B = ctx.saved_tensors
        first = dist.get_rank(ctx.group) * len(own_B)
        both_N2 = _all_gather(torch.stack([column_B, grad_column_B], dim=1), ctx.group)
        column_N, grad_column_N = both_N2.T.contiguous()
        image_grad_BE = torch.zeros_like(image_BE, dtype=own_B.dtype)
        scale_grad = torch.zeros_like(scale)
        returning = _RingSum(ctx.group) if ctx.ring else _ScatteredSum(ctx.group)
        for start, block_ME in _passing_texts(text_BE, ctx.group, ctx.ring):
            columns = slice(start, start + len(block_ME))
            block_image_grad_BE, block_text_grad_ME, block_scale_grad = pair_gradients(
                image_BE, block_ME, scale, own_B, own_N[columns], _columns(exclude_BN, columns), first - start,
                ctx.kernels, row_B, column_N[columns], grad_row_B.contiguous(), grad_column_N[columns],
            )  # fmt: skip
            image_grad_BE += block_image_grad_BE
            scale_grad += block_scale_grad
            returning.add(block_text_grad_ME)
        return image_grad_BE, returning.own(), scale_grad, *([None] * 5)


def _columns(table_BN: Tensor | None, columns: slice) -> Tensor | None:
    return None if table_BN is None else table_BN[:, columns]


def _passing_texts(text_BE: Tensor, group: dist.ProcessGroup, ring: bool) -> Iterator[tuple[int, Tensor]]:
    """Blocks of the global batch's texts, each with the number of its first row."""
    if not ring:
        yield 0, _all_gather(text_BE, group)
        return
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    block_BE = text_BE.contiguous()
    for step in range(world):
        last = step == world - 1
        arrive = None if last else _pass_on(block_BE, group, tag=0)
        yield (rank - step) % world * len(block_BE), block_BE
        if arrive is not None:
            block_BE = arrive()


class _RingSum:
    """Sums the gradients of each rank's texts along the ring, in the order in which ``_passing_texts`` moves texts."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.arrive: Callable[[], Tensor] | None = None

    def add(self, grad_BE: Tensor) -> None:
        """Add this rank's term to what the ranks before it sent, and send it on."""
        if self.arrive is not None:
            grad_BE += self.arrive()
        self.arrive = _pass_on(grad_BE, self.group, tag=1)

    def own(self) -> Tensor:
        """The sum of this rank's own texts, come home."""
        assert self.arrive is not None
        return self.arrive()


class _ScatteredSum:
    """Sums the gradients of all texts and leaves each rank its own."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group

    def add(self, grad_NE: Tensor) -> None:
        self.grad_NE = grad_NE

    def own(self) -> Tensor:
        return _reduce_scatter(self.grad_NE, self.group)


def _pass_on(tensor: Tensor, group: dist.ProcessGroup, tag: int) -> Callable[[], Tensor]:
    """Start to send ``tensor`` to the next rank; the result waits for the one from the rank before.

    ``tag`` keeps apart what is under way at the same time.
    """
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    incoming = torch.empty_like(tensor)
    # As one batch: sends and receives of all ranks then cannot wait for each other.
    operations = [
        dist.P2POp(dist.isend, tensor, group=group, group_peer=(rank + 1) % world, tag=tag),
        dist.P2POp(dist.irecv, incoming, group=group, group_peer=(rank - 1) % world, tag=tag),
    ]
    works = dist.batch_isend_irecv(operations)

    def arrive() -> Tensor:
        for work in works:
            work.wait()
        operations.clear()  # they held on to what was being sent
        return incoming

    return arrive


def _all_gather(rows: Tensor, group: dist.ProcessGroup) -> Tensor:
    gathered = rows.new_empty(dist.get_world_size(group) * len(rows), *rows.shape[1:])
    dist.all_gather_into_tensor(gathered, rows.contiguous(), group=group)
    return gathered


def _reduce_scatter(rows: Tensor, group: dist.ProcessGroup) -> Tensor:
    own = rows.new_empty(len(rows) // dist.get_world_size(group), *rows.shape[1:])
    dist.reduce_scatter_tensor(own, rows.contiguous(), group=group)
    return own
