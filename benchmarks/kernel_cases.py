"""The operations that benchmarks of the kernels run, at the sizes of ViT-B/16 at 224 pixels.

An operation joins the compile table (``benchmarks.kernel_resources``), the memory checker's run
(``benchmarks.gpu_sanitize``) and the measurements on a GPU (``benchmarks.gpu_kernels``) by a function in ``MAKERS``
that returns its cases for one batch size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

__all__ = ["MAKERS", "Case", "forward_backward"]

CENTERS, WIDTH, DECODER_WIDTH, PATCH, IMAGE = 8, 768, 384, 16, 224
PATCHES, VISIBLE = 196, 48
EMBEDDING = 512
MEAN, STD = (0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)


@dataclass(frozen=True)
class Case:
    """One operation at one size."""

    name: str
    """Operation and size."""
    inputs: tuple[Any, ...]
    """Arguments of both functions; gradients are taken for the tensors that require them."""
    kernel: Callable[..., Tensor | tuple[Tensor, ...]]
    """By Triton kernels."""
    reference: Callable[..., Tensor | tuple[Tensor, ...]]
    """The same in plain torch: run eagerly and compiled."""
    least_bytes: int = 0
    """What must be read and written, forward and backward, if nothing is touched twice; 0: not bound by memory."""
    operations: int = 0
    """Floating-point operations of matrix products, forward and backward; 0: too few to matter."""
    times_eager: float = 2.0
    """How many times faster than eager plain torch the kernels have to be, forward and backward."""
    most_bytes: int = 0
    """Memory beyond the inputs that forward and backward may take; 0: it only informs."""


def forward_backward(case: Case, function: Callable[..., Any]) -> Callable[[], tuple[Tensor, ...]]:
    """A call that returns outputs and gradients, for one fixed gradient of the outputs."""
    wanted = [value for value in case.inputs if isinstance(value, Tensor) and value.requires_grad]
    grads: list[Tensor] = []

    def call() -> tuple[Tensor, ...]:
        out = function(*case.inputs)
        outs = out if isinstance(out, tuple) else (out,)
        if not grads:
            grads.extend(torch.ones_like(tensor) for tensor in outs)
        return (*outs, *torch.autograd.grad(outs, wanted, grads))

    return call


def patch_assignment_cases(batch: int, device: str, dtype: torch.dtype) -> list[Case]:
    """Both passes of a training step. The reference is handed its noise; the kernels draw theirs."""
    from segclip.kernels.patch_assignment import GumbelKey, patch_assignment_reference
    from segclip.kernels.patch_assignment_triton import patch_assignment_triton
    from segclip.keyed_random import gumbel

    cases = []
    positions = torch.arange(batch, device=device)
    for patches in (PATCHES, VISIBLE):
        query = torch.randn(batch, CENTERS, WIDTH, device=device, dtype=dtype) * WIDTH**-0.5
        key, value = (torch.randn(batch, patches, WIDTH, device=device, dtype=dtype) for _ in range(2))
        noise = gumbel(1, 1, positions, CENTERS * patches).view(batch, CENTERS, patches)
        large, small, maps = patches * WIDTH, CENTERS * WIDTH, CENTERS * patches * 4
        cases.append(
            Case(
                f"patch_assignment L={patches} B={batch}",
                tuple(tensor.requires_grad_(True) for tensor in (query, key, value)),
                lambda q, k, v: patch_assignment_triton(q, k, v, GumbelKey(1, 1, positions), 0.9),
                lambda q, k, v, noise=noise: tuple(patch_assignment_reference(q, k, v, noise, 0.9)),
                # k, v; then k, v and their gradients; q, regions; then q, regions and their gradients; maps.
                least_bytes=batch * ((6 * large + 6 * small) * query.element_size() + 5 * maps),
            )
        )
    return cases


def superpixel_kl_cases(batch: int, device: str, dtype: torch.dtype) -> list[Case]:
    """One-hot float32 assignments, whatever ``dtype``, and 64 superpixels."""
    from segclip.kernels.superpixel_kl import superpixel_kl_reference
    from segclip.kernels.superpixel_kl_triton import superpixel_kl_triton

    winners = torch.randint(CENTERS, (batch, PATCHES), device=device)
    hard = torch.nn.functional.one_hot(winners, CENTERS).transpose(1, 2).float().contiguous()
    ids = torch.randint(64, (batch, PATCHES), device=device)
    return [
        Case(
            f"superpixel_kl L={PATCHES} B={batch}",
            (hard.requires_grad_(True), ids),
            superpixel_kl_triton,
            superpixel_kl_reference,
            least_bytes=batch * PATCHES * (3 * CENTERS * 4 + 2 * 8),
        )
    ]


def masked_decoder_cases(batch: int, device: str, dtype: torch.dtype) -> list[Case]:
    """The decoder's sequence with its class token, and the loss on uint8 images."""
    from segclip.kernels.masked_decoder import masked_pixel_loss_reference, unshuffle_reference
    from segclip.kernels.masked_decoder_triton import masked_pixel_loss_triton, unshuffle_triton

    tokens = torch.randn(batch, VISIBLE + 1, DECODER_WIDTH, device=device, dtype=dtype)
    restore = torch.rand(batch, PATCHES + 1, device=device).argsort(dim=1)
    mask_token = torch.randn(DECODER_WIDTH, device=device, dtype=dtype)
    positions = torch.randn(PATCHES + 1, DECODER_WIDTH, device=device, dtype=dtype)
    masked = torch.rand(batch, PATCHES, device=device).argsort(dim=1)[:, VISIBLE:]
    values = 3 * PATCH**2
    prediction = torch.randn(batch, PATCHES - VISIBLE, values, device=device, dtype=dtype)
    images = torch.randint(256, (batch, 3, IMAGE, IMAGE), device=device, dtype=torch.uint8)
    size = tokens.element_size()
    return [
        Case(
            f"unshuffle N={PATCHES + 1} B={batch}",
            (tokens.requires_grad_(True), restore, mask_token.requires_grad_(True), positions),
            unshuffle_triton,
            unshuffle_reference,
            least_bytes=2 * batch * ((VISIBLE + PATCHES + 2) * DECODER_WIDTH * size + (PATCHES + 1) * 8),
        ),
        Case(
            f"masked_pixel_loss M={PATCHES - VISIBLE} B={batch}",
            (prediction.requires_grad_(True), images, masked),
            lambda p, i, m: masked_pixel_loss_triton(p, i, m, PATCH, MEAN, STD),
            lambda p, i, m: masked_pixel_loss_reference(p, i, m, PATCH, MEAN, STD),
            least_bytes=batch * (PATCHES - VISIBLE) * (values * (3 * size + 2) + 2 * 8),
        ),
    ]


def contrastive_cases(batch: int, device: str, dtype: torch.dtype) -> list[Case]:
    """The loss of one process, over all negatives and with some pairs left out."""
    from segclip.kernels.contrastive import contrastive_loss_reference, contrastive_loss_unchecked

    image, text = torch.randn(2, batch, EMBEDDING, device=device).to(dtype)
    # Some correlation, so that the loss is not that of chance.
    text = text + 0.3 * image
    scale = torch.tensor(14.3, device=device)
    inputs = tuple(tensor.requires_grad_(True) for tensor in (image, text, scale))
    kernel = partial(contrastive_loss_unchecked, kernels=True)
    # One product forward; the same again and two more backward.
    costs: dict[str, Any] = {
        "operations": 4 * 2 * batch**2 * EMBEDDING,
        "times_eager": 1.0,
        "most_bytes": 10**9,
    }
    cases = [Case(f"contrastive N={batch}", inputs, kernel, contrastive_loss_reference, **costs)]
    # The table alone would be gigabytes.
    if batch <= 4096:
        exclude = torch.rand(batch, batch, device=device) < 0.1
        ours, plain = (partial(one, exclude_BN=exclude) for one in (kernel, contrastive_loss_reference))
        cases.append(Case(f"contrastive_exclude N={batch}", inputs, ours, plain, **costs))
    return cases


MAKERS: dict[Callable[[int, str, torch.dtype], list[Case]], tuple[int, ...]] = {
    patch_assignment_cases: (96, 512),
    superpixel_kl_cases: (96, 512),
    masked_decoder_cases: (96, 512),
    contrastive_cases: (32768, 65536),
}
"""Called with batch size, device and type, each returns its cases; beside it, the batch sizes that are measured. Add
an operation's function here."""
