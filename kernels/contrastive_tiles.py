"""Log-sum-exps of a rectangle of logits in both directions, and their gradients, block by block.

    a[i, j]   = s * u[i] . w[j]
    row[i]    = log sum_j exp(a[i, j] - own_row[i])              j over texts that i does not leave out
    column[j] = log sum_i exp(a[i, j] - own_column[j])           i over images that j does not leave out

Shapes: images u [B, E], texts w [N, E]; row, own_row [B]; column, own_column [N].
Types: u, w float32, bfloat16 or float64; everything else in float32 (float64 for float64), products summed in it.

The texts are those of a larger batch or a part of them. Image i and text i + offset are a pair, if there is such a
text here. ``own`` holds the logit of each row's (column's) own pair, wherever that lies. So over the whole batch row
and column *are* the losses, small numbers, and nothing is lost to the size of the logits. The gradient counts a pair
through the logits alone and takes ``own`` to be the logit of the pair: together,

    da[i, j]  = g_row[i] (exp(a[i, j] - own_row[i] - row[i]) - [j = i + offset])
              + g_column[j] (exp(a[i, j] - own_column[j] - column[j]) - [j = i + offset])
    du        = s da w        dw = s da^T u        ds = sum_i u[i] . (da w)[i]

where row and column, in the exponents, are the finished sums over the whole batch.

One pass over a block of logits serves both directions, forward and backward. Blocks have a fixed size, so memory
beyond the result is constant. What happens within a block is done by plain torch (``TorchBlocks``) or by the Triton
kernels (``segclip.kernels.contrastive_triton``); sums are taken in a fixed order, hence equal bit by bit in each run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

__all__ = ["Rectangle", "Sums", "pair_gradients", "pair_terms"]


class Rectangle(NamedTuple):
    """Images by texts; see the top of this file."""

    image_BE: Tensor
    text_NE: Tensor
    scale: Tensor
    own_B: Tensor
    own_N: Tensor
    exclude_BN: Tensor | None
    """bool, true where image and text are no negatives of each other; has no effect on a pair."""
    offset: int

    @property
    def compute_dtype(self) -> torch.dtype:
        return torch.promote_types(self.image_BE.dtype, torch.float32)

    def part(self, rows: slice, columns: slice) -> Rectangle:
        """A smaller rectangle, of views."""
        return Rectangle(
            self.image_BE[rows],
            self.text_NE[columns],
            self.scale,
            self.own_B[rows],
            self.own_N[columns],
            None if self.exclude_BN is None else self.exclude_BN[rows, columns],
            self.offset + rows.start - columns.start,
        )

    def blocks(self, side: int) -> Iterator[tuple[slice, slice]]:
        """Rows and columns of the blocks of at most ``side`` by ``side`` that make up this rectangle."""
        for rows in _spans(self.image_BE.shape[0], side):
            for columns in _spans(self.text_NE.shape[0], side):
                yield rows, columns


class Sums(NamedTuple):
    """What the gradient of the logits needs: the finished log-sum-exps and the gradients with respect to them."""

    row_B: Tensor
    column_N: Tensor
    grad_row_B: Tensor
    grad_column_N: Tensor

    def part(self, rows: slice, columns: slice) -> Sums:
        """Those of a smaller rectangle."""
        return Sums(
            self.row_B[rows], self.column_N[columns], self.grad_row_B[rows], self.grad_column_N[columns]
        )


class Blocks(Protocol):
    """Does the work of one block."""

    forward_side: int
    backward_side: int

    def log_sum_exps(self, block: Rectangle) -> tuple[Tensor, Tensor]:
        """Row and column of the block."""

    def logit_gradients(self, block: Rectangle, sums: Sums) -> Tensor:
        """da [B, N], in the type of the features or a wider one."""


class TorchBlocks:
    """Plain torch, for any device."""

    forward_side = backward_side = 1024
    """4 MiB of float32: large enough for a fast product, small enough for a processor's cache."""

    def log_sum_exps(self, block: Rectangle) -> tuple[Tensor, Tensor]:
        logits_BN = self._logits(block)
        return (
            (logits_BN - block.own_B[:, None]).logsumexp(dim=1),
            (logits_BN - block.own_N).logsumexp(dim=0),
        )

    def logit_gradients(self, block: Rectangle, sums: Sums) -> Tensor:
        logits_BN = self._logits(block)
        # Two subtractions: the sum of the two numbers would be rounded to the precision of the larger.
        grad_BN = (logits_BN - block.own_B[:, None]).sub_(sums.row_B[:, None]).exp_()
        grad_BN.mul_(sums.grad_row_B[:, None])
        grad_BN.add_(logits_BN.sub_(block.own_N).sub_(sums.column_N).exp_().mul_(sums.grad_column_N))
        pairs = grad_BN.diagonal(block.offset)
        rows, columns = max(0, -block.offset), max(0, block.offset)
        count = len(pairs)
        pairs.sub_(sums.grad_row_B[rows : rows + count]).sub_(sums.grad_column_N[columns : columns + count])
        return grad_BN

    @staticmethod
    def _logits(block: Rectangle) -> Tensor:
        compute = block.compute_dtype
        logits_BN = (block.image_BE.to(compute) @ block.text_NE.to(compute).T).mul_(block.scale)
        if block.exclude_BN is not None:
            exclude_BN = block.exclude_BN.clone()
            exclude_BN.diagonal(block.offset).fill_(False)
            logits_BN.masked_fill_(exclude_BN, float("-inf"))
        return logits_BN


@torch.library.custom_op("segclip::contrastive", mutates_args=())
def pair_terms(
    image_BE: Tensor,
    text_NE: Tensor,
    scale: Tensor,
    own_B: Tensor,
    own_N: Tensor,
    exclude_BN: Tensor | None,
    offset: int,
    kernels: bool,
) -> tuple[Tensor, Tensor]:
    """Row [B] and column [N] of a rectangle; its fields and ``kernels``: by Triton's kernels or plain torch.

    The derivative is the one at the top of this file; it takes the rectangle to be the whole batch.
    """
    whole = Rectangle(image_BE, text_NE, scale, own_B, own_N, exclude_BN, offset)
    do = _blocks(kernels)
    row_B = torch.full_like(own_B, float("-inf"))
    column_N = torch.full_like(own_N, float("-inf"))
    for rows, columns in whole.blocks(do.forward_side):
        block_row_B, block_column_N = do.log_sum_exps(whole.part(rows, columns))
        row_B[rows] = torch.logaddexp(row_B[rows], block_row_B)
        column_N[columns] = torch.logaddexp(column_N[columns], block_column_N)
    return row_B, column_N


@torch.library.custom_op("segclip::contrastive_backward", mutates_args=())
def pair_gradients(
    image_BE: Tensor,
    text_NE: Tensor,
    scale: Tensor,
    own_B: Tensor,
    own_N: Tensor,
    exclude_BN: Tensor | None,
    offset: int,
    kernels: bool,
    row_B: Tensor,
    column_N: Tensor,
    grad_row_B: Tensor,
    grad_column_N: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to images [B, E], texts [N, E] and temperature, not yet rounded to the features' type.

    Arguments as of ``pair_terms``, then the finished sums and the gradients with respect to them.
    """
    whole = Rectangle(image_BE, text_NE, scale, own_B, own_N, exclude_BN, offset)
    sums = Sums(row_B, column_N, grad_row_B, grad_column_N)
    do = _blocks(kernels)
    image_grad_BE = torch.zeros_like(image_BE, dtype=whole.compute_dtype)
    text_grad_NE = torch.zeros_like(text_NE, dtype=whole.compute_dtype)
    for rows, columns in whole.blocks(do.backward_side):
        block = whole.part(rows, columns)
        grad_BN = do.logit_gradients(block, sums.part(rows, columns))
        image_grad_BE[rows] += _product(grad_BN, block.text_NE)
        text_grad_NE[columns] += _product(grad_BN.T, block.image_BE)
    # A sum over the whole batch in which much cancels: in double precision, and in pieces, which saves memory.
    scale_grad = torch.zeros_like(scale, dtype=torch.float64)
    for rows in _spans(image_BE.shape[0], do.backward_side):
        scale_grad += (image_BE[rows] * image_grad_BE[rows]).sum(dtype=torch.float64)
    return image_grad_BE.mul_(scale), text_grad_NE.mul_(scale), scale_grad.to(scale.dtype)


@pair_terms.register_fake
def _(image_BE, text_NE, scale, own_B, own_N, exclude_BN, offset, kernels):  # type: ignore[no-untyped-def]
    return torch.empty_like(own_B), torch.empty_like(own_N)


@pair_gradients.register_fake
def _(image_BE, text_NE, scale, own_B, *_):  # type: ignore[no-untyped-def]
    return (
        torch.empty_like(image_BE, dtype=own_B.dtype),
        torch.empty_like(text_NE, dtype=own_B.dtype),
        torch.empty_like(scale),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.offset, ctx.kernels = inputs
    ctx.save_for_backward(*tensors, *output)


def _derivative(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, row_B, column_N = ctx.saved_tensors
    return (
        *pair_gradients(*tensors, ctx.offset, ctx.kernels, row_B, column_N, *grads),
        *([None] * 5),
    )


pair_terms.register_autograd(_derivative, setup_context=_keep)


def _blocks(kernels: bool) -> Blocks:
    if not kernels:
        return TorchBlocks()
    from segclip.kernels.contrastive_triton import TritonBlocks

    return TritonBlocks()


def _product(a_MK: Tensor, b_KN: Tensor) -> Tensor:
    """a @ b, summed and returned in at least float32."""
    if a_MK.is_cuda and a_MK.dtype == b_KN.dtype == torch.bfloat16:
        return torch.mm(a_MK, b_KN, out_dtype=torch.float32)
    compute = torch.promote_types(a_MK.dtype, torch.float32)
    return a_MK.to(compute) @ b_KN.to(compute)


def _spans(length: int, side: int) -> Iterator[slice]:
    for start in range(0, length, side):
        yield slice(start, min(start + side, length))
