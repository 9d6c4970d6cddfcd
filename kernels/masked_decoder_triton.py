"""Triton kernels of ``unshuffle`` and ``masked_pixel_loss``; formulas and letters: ``segclip.kernels.masked_decoder``.

``unshuffle``: one program writes a tile of places of one sample, and reads each row from where it stands. Backward,
a program owns some channels of one sample: rows of visible tokens go back to their tokens, one each because
``restore`` is a permutation, and the rows of mask tokens are summed. The mask token's gradient is the sum of these
sums over samples; nothing is added from two programs, so the same numbers come out each time.

``masked_pixel_loss``: one program takes a tile of masked patches, reads their pixels where they stand in the image,
normalises them and compares; the patches' sums of squares go to memory, one number each. Backward does the same
again and writes the gradient 2 (prediction - pixels) / (B M 3 p^2).

An index outside of its range, which a kernel can not report, makes NaN of what it should have fetched.

Bytes a sample, least: ``unshuffle`` reads K rows and writes N, and the reverse backward; ``masked_pixel_loss`` reads
prediction and pixels in each direction and writes the gradient.
"""
# mypy: allow-untyped-defs

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from segclip.kernels.triton_common import strides, tuned

__all__ = ["masked_pixel_loss_triton", "unshuffle_triton"]


@tuned(
    triton.Config({"BLOCK_N": 8, "BLOCK_D": 512}, num_warps=4),
    triton.Config({"BLOCK_N": 16, "BLOCK_D": 128}, num_warps=4),
    triton.Config({"BLOCK_N": 32, "BLOCK_D": 128}, num_warps=4),
    key=["K", "N", "D"],
)
@triton.jit
def _unshuffle(
    tokens, restore, mask_token, positions, out,
    K, N, D, tokens_b, tokens_k, tokens_d, restore_b, restore_n, mask_d, positions_n, positions_d,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """out [B, N, D], contiguous."""
    b = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tl.program_id(2).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside_ND = (n < N)[:, None] & (d < D)[None, :]
    source_N = tl.load(restore + b * restore_b + n * restore_n, mask=n < N, other=0).to(tl.int64)
    known_N1 = ((source_N >= 0) & (source_N < N))[:, None]
    visible_N1 = ((source_N >= 0) & (source_N < K))[:, None]
    token_ND = tl.load(
        tokens + b * tokens_b + source_N[:, None] * tokens_k + d[None, :] * tokens_d,
        mask=inside_ND & visible_N1,
        other=0.0,
    )
    mask_D = tl.load(mask_token + d * mask_d, mask=d < D, other=0.0)
    position_ND = tl.load(
        positions + n[:, None] * positions_n + d[None, :] * positions_d, mask=inside_ND, other=0.0
    )
    out_ND = tl.where(visible_N1, token_ND, mask_D[None, :]).to(tl.float32) + position_ND.to(tl.float32)
    out_ND = tl.where(known_N1, out_ND, float("nan"))
    tl.store(out + (b * N + n[:, None]) * D + d[None, :], out_ND.to(out.dtype.element_ty), mask=inside_ND)


@tuned(
    triton.Config({"BLOCK_N": 32, "BLOCK_D": 128}, num_warps=4),
    triton.Config({"BLOCK_N": 32, "BLOCK_D": 64}, num_warps=2),
    triton.Config({"BLOCK_N": 32, "BLOCK_D": 256}, num_warps=8),
    key=["K", "N", "D"],
)
@triton.jit
def _unshuffle_backward(
    grad_out, restore, grad_tokens, grad_mask,
    K, N, D, grad_b, grad_n, grad_d, restore_b, restore_n,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """grad_tokens [B, K, D]; grad_mask [B, D] float32, a sum for each sample; both contiguous."""
    b = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    sum_ND = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for start in range(0, N, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N).to(tl.int64)
        inside_ND = (n < N)[:, None] & (d < D)[None, :]
        grad_ND = tl.load(
            grad_out + b * grad_b + n[:, None] * grad_n + d[None, :] * grad_d, mask=inside_ND, other=0.0
        )
        source_N = tl.load(restore + b * restore_b + n * restore_n, mask=n < N, other=0).to(tl.int64)
        visible_N1 = ((source_N >= 0) & (source_N < K))[:, None]
        tl.store(
            grad_tokens + (b * K + source_N[:, None]) * D + d[None, :], grad_ND, mask=inside_ND & visible_N1
        )
        sum_ND += tl.where(visible_N1, 0.0, grad_ND.to(tl.float32))
    tl.store(grad_mask + b * D + d, tl.sum(sum_ND, axis=0), mask=d < D)


@triton.jit
def _difference(
    prediction, images, masked, b, m, e,
    M, P, patches, columns, prediction_b, prediction_m, prediction_p,
    image_b, image_c, image_h, image_w, masked_b, masked_m,
    mean_0, mean_1, mean_2, std_0, std_1, std_2, PATCH: tl.constexpr, NORMALISE: tl.constexpr,
):  # fmt: skip
    """prediction - pixels of masked patches m, elements e (int32) of a patch: a float32 tile, zero outside."""
    inside_ME = (m < M)[:, None] & (e < P)[None, :]
    patch_M = tl.load(masked + b * masked_b + m * masked_m, mask=m < M, other=0).to(tl.int64)
    known_M1 = ((patch_M >= 0) & (patch_M < patches))[:, None]
    channel_E, pixel_E = e % 3, e // 3
    row_ME = (patch_M // columns * PATCH)[:, None] + (pixel_E // PATCH)[None, :]
    column_ME = (patch_M % columns * PATCH)[:, None] + (pixel_E % PATCH)[None, :]
    pixel_ME = tl.load(
        images
        + b * image_b
        + channel_E[None, :].to(tl.int64) * image_c
        + row_ME * image_h
        + column_ME * image_w,
        mask=inside_ME & known_M1,
        other=0,
    ).to(tl.float32)
    if NORMALISE:
        mean_E = tl.where(channel_E == 0, mean_0, tl.where(channel_E == 1, mean_1, mean_2))
        std_E = tl.where(channel_E == 0, std_0, tl.where(channel_E == 1, std_1, std_2))
        pixel_ME = (pixel_ME / 255.0 - mean_E[None, :]) / std_E[None, :]
    predicted_ME = tl.load(
        prediction + b * prediction_b + m[:, None] * prediction_m + e[None, :].to(tl.int64) * prediction_p,
        mask=inside_ME,
        other=0.0,
    ).to(tl.float32)
    return tl.where(inside_ME, tl.where(known_M1, predicted_ME - pixel_ME, float("nan")), 0.0)


PIXEL_CONFIGS = [
    triton.Config({"BLOCK_M": 4}, num_warps=4),
    triton.Config({"BLOCK_M": 2}, num_warps=4),
    triton.Config({"BLOCK_M": 8}, num_warps=8),
]


@tuned(*PIXEL_CONFIGS, key=["M", "P"])
@triton.jit
def _squares(
    prediction, images, masked, squares,
    M, P, patches, columns, prediction_b, prediction_m, prediction_p,
    image_b, image_c, image_h, image_w, masked_b, masked_m,
    mean_0, mean_1, mean_2, std_0, std_1, std_2,
    PATCH: tl.constexpr, NORMALISE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """squares [B, M] float32, contiguous: sum over a patch of (prediction - pixels)^2."""
    b = tl.program_id(0).to(tl.int64)
    m = tl.program_id(1).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    e = tl.arange(0, BLOCK_P)
    difference_ME = _difference(
        prediction, images, masked, b, m, e, M, P, patches, columns, prediction_b, prediction_m, prediction_p,
        image_b, image_c, image_h, image_w, masked_b, masked_m,
        mean_0, mean_1, mean_2, std_0, std_1, std_2, PATCH, NORMALISE,
    )  # fmt: skip
    tl.store(squares + b * M + m, tl.sum(difference_ME * difference_ME, axis=1), mask=m < M)


@tuned(*PIXEL_CONFIGS, key=["M", "P"])
@triton.jit
def _squares_backward(
    grad_loss, prediction, images, masked, grad_prediction, scale,
    M, P, patches, columns, prediction_b, prediction_m, prediction_p,
    image_b, image_c, image_h, image_w, masked_b, masked_m,
    mean_0, mean_1, mean_2, std_0, std_1, std_2,
    PATCH: tl.constexpr, NORMALISE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """grad_prediction [B, M, P], contiguous; grad_loss a float32 scalar."""
    b = tl.program_id(0).to(tl.int64)
    m = tl.program_id(1).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    e = tl.arange(0, BLOCK_P)
    difference_ME = _difference(
        prediction, images, masked, b, m, e, M, P, patches, columns, prediction_b, prediction_m, prediction_p,
        image_b, image_c, image_h, image_w, masked_b, masked_m,
        mean_0, mean_1, mean_2, std_0, std_1, std_2, PATCH, NORMALISE,
    )  # fmt: skip
    grad_ME = difference_ME * (2.0 * scale * tl.load(grad_loss))
    tl.store(
        grad_prediction + (b * M + m[:, None]) * P + e[None, :],
        grad_ME.to(grad_prediction.dtype.element_ty),
        mask=(m < M)[:, None] & (e < P)[None, :],
    )


@torch.library.custom_op("segclip::unshuffle", mutates_args=())
def _unshuffle_op(
    tokens_BKD: Tensor, restore_BN: Tensor, mask_token_D: Tensor, positions_ND: Tensor
) -> Tensor:
    batch, visible, width = tokens_BKD.shape
    places = restore_BN.shape[1]
    out_BND = tokens_BKD.new_empty((batch, places, width))
    with torch.cuda.device_of(tokens_BKD):
        _unshuffle[lambda meta: (batch, triton.cdiv(places, meta["BLOCK_N"]), triton.cdiv(width, meta["BLOCK_D"]))](
            tokens_BKD, restore_BN, mask_token_D, positions_ND, out_BND, visible, places, width,
            *tokens_BKD.stride(), *restore_BN.stride(), *mask_token_D.stride(), *positions_ND.stride(),
        )  # fmt: skip
    return out_BND


@torch.library.custom_op("segclip::unshuffle_backward", mutates_args=())
def _unshuffle_backward_op(grad_BND: Tensor, restore_BN: Tensor, visible: int) -> tuple[Tensor, Tensor]:
    batch, places, width = grad_BND.shape
    grad_tokens_BKD = grad_BND.new_empty((batch, visible, width))
    grad_mask_BD = grad_BND.new_empty((batch, width), dtype=torch.float32)
    with torch.cuda.device_of(grad_BND):
        _unshuffle_backward[lambda meta: (batch, triton.cdiv(width, meta["BLOCK_D"]))](
            grad_BND, restore_BN, grad_tokens_BKD, grad_mask_BD,
            visible, places, width, *grad_BND.stride(), *restore_BN.stride(),
        )  # fmt: skip
    return grad_tokens_BKD, grad_mask_BD.sum(dim=0).to(grad_BND.dtype)


@_unshuffle_op.register_fake
def _(tokens_BKD, restore_BN, mask_token_D, positions_ND):
    return tokens_BKD.new_empty((tokens_BKD.shape[0], restore_BN.shape[1], tokens_BKD.shape[2]))


@_unshuffle_backward_op.register_fake
def _(grad_BND, restore_BN, visible):
    batch, _, width = grad_BND.shape
    return grad_BND.new_empty((batch, visible, width)), grad_BND.new_empty((width,))


def _keep_unshuffle(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.visible = inputs[0].shape[1]
    ctx.save_for_backward(inputs[1])


def _differentiate_unshuffle(ctx: Any, grad_BND: Tensor) -> tuple[Tensor | None, ...]:
    grad_tokens_BKD, grad_mask_D = _unshuffle_backward_op(grad_BND, *ctx.saved_tensors, ctx.visible)
    # Rarely wanted: positions are fixed in the network.
    grad_positions_ND = grad_BND.sum(dim=0) if ctx.needs_input_grad[3] else None
    return grad_tokens_BKD, None, grad_mask_D, grad_positions_ND


_unshuffle_op.register_autograd(_differentiate_unshuffle, setup_context=_keep_unshuffle)


def _pixel_arguments(
    prediction_BMP: Tensor,
    images_BCHW: Tensor,
    masked_BM: Tensor,
    patch_size: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> dict[str, Any]:
    """What both pixel kernels take."""
    return {
        "prediction": prediction_BMP,
        "images": images_BCHW,
        "masked": masked_BM,
        "M": prediction_BMP.shape[1],
        "P": prediction_BMP.shape[2],
        "patches": (images_BCHW.shape[2] // patch_size) * (images_BCHW.shape[3] // patch_size),
        "columns": images_BCHW.shape[3] // patch_size,
        **strides("prediction", prediction_BMP, "bmp"),
        **strides("image", images_BCHW, "bchw"),
        **strides("masked", masked_BM, "bm"),
        **{f"mean_{channel}": value for channel, value in enumerate(mean)},
        **{f"std_{channel}": value for channel, value in enumerate(std)},
        "PATCH": patch_size,
        "NORMALISE": images_BCHW.dtype == torch.uint8,
        "BLOCK_P": triton.next_power_of_2(prediction_BMP.shape[2]),
    }


@torch.library.custom_op("segclip::masked_pixel_loss", mutates_args=())
def _pixel_loss(
    prediction_BMP: Tensor,
    images_BCHW: Tensor,
    masked_BM: Tensor,
    patch_size: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> Tensor:
    batch, places, _ = prediction_BMP.shape
    squares_BM = prediction_BMP.new_empty((batch, places), dtype=torch.float32)
    with torch.cuda.device_of(prediction_BMP):
        _squares[lambda meta: (batch, triton.cdiv(places, meta["BLOCK_M"]))](
            squares=squares_BM,
            **_pixel_arguments(prediction_BMP, images_BCHW, masked_BM, patch_size, mean, std),
        )
    return squares_BM.sum() / prediction_BMP.numel()


@torch.library.custom_op("segclip::masked_pixel_loss_backward", mutates_args=())
def _pixel_loss_backward(
    grad_loss: Tensor,
    prediction_BMP: Tensor,
    images_BCHW: Tensor,
    masked_BM: Tensor,
    patch_size: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> Tensor:
    batch, places, _ = prediction_BMP.shape
    grad_BMP = torch.empty_like(prediction_BMP, memory_format=torch.contiguous_format)
    with torch.cuda.device_of(prediction_BMP):
        _squares_backward[lambda meta: (batch, triton.cdiv(places, meta["BLOCK_M"]))](
            grad_loss=grad_loss,
            grad_prediction=grad_BMP,
            scale=1 / prediction_BMP.numel(),
            **_pixel_arguments(prediction_BMP, images_BCHW, masked_BM, patch_size, mean, std),
        )
    return grad_BMP


@_pixel_loss.register_fake
def _(prediction_BMP, images_BCHW, masked_BM, patch_size, mean, std):
    return prediction_BMP.new_empty((), dtype=torch.float32)


@_pixel_loss_backward.register_fake
def _(grad_loss, prediction_BMP, images_BCHW, masked_BM, patch_size, mean, std):
    return torch.empty_like(prediction_BMP, memory_format=torch.contiguous_format)


def _keep_pixels(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.rest = inputs[3:]


def _differentiate_pixels(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
    return _pixel_loss_backward(grad_loss, *ctx.saved_tensors, *ctx.rest), None, None, None, None, None


_pixel_loss.register_autograd(_differentiate_pixels, setup_context=_keep_pixels)


def unshuffle_triton(
    tokens_BKD: Tensor, restore_BN: Tensor, mask_token_D: Tensor, positions_ND: Tensor
) -> Tensor:
    """``unshuffle`` by Triton kernels, for checked arguments."""
    out_BND: Tensor = _unshuffle_op(tokens_BKD, restore_BN, mask_token_D, positions_ND)
    return out_BND


def masked_pixel_loss_triton(
    prediction_BMP: Tensor,
    images_BCHW: Tensor,
    masked_BM: Tensor,
    patch_size: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> Tensor:
    """``masked_pixel_loss`` by Triton kernels, for checked arguments."""
    loss: Tensor = _pixel_loss(
        prediction_BMP, images_BCHW, masked_BM, patch_size, [float(x) for x in mean], [float(x) for x in std]
    )
    return loss
