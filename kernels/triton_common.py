"""What the Triton kernels share: products that lose no bits, keyed noise, strides, and the choice of configurations.

This module and the ``*_triton`` modules are imported when a kernel is first called, so that nothing else needs
Triton to be installed.
"""
# mypy: allow-untyped-defs

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs
from triton.runtime.autotuner import Autotuner

__all__ = ["block_of_centers", "dot", "dot_exact", "gumbel_noise", "strides", "tuned"]

INTERPRETED = tl.constexpr(bool(knobs.runtime.interpret))


def tuned(*configs: triton.Config, key: list[str]) -> Callable[[Any], Any]:
    """Decorator: choose among ``configs`` by timing, once for each value of ``key`` and set of dtypes.

    The choice is kept in Triton's cache folder (``TRITON_CACHE_DIR``), so a later process neither times again nor
    chooses differently. Choices may differ in the order of sums: under ``torch.use_deterministic_algorithms`` the
    first configuration runs, whatever was chosen before, and nothing is timed. Interpreted kernels also run the first.
    """
    for config in configs:
        # Said outright, because versions of Triton differ in their default: one rounding for a * b + c.
        config.kwargs["enable_fp_fusion"] = True
    decorate = triton.autotune(
        configs=list(configs[:1] if INTERPRETED else configs),
        key=key,
        cache_results=True,
    )

    def decorator(kernel: Any) -> Any:
        tuner = decorate(kernel)
        # For tests, which run each of them, interpreted too.
        tuner.all_configs = configs

        def run(*arguments: Any, **named: Any) -> Any:
            if torch.are_deterministic_algorithms_enabled():
                return tuner.fn.run(*arguments, **named, **tuner.configs[0].all_kwargs())
            return Autotuner.run(tuner, *arguments, **named)

        tuner.run = run
        return tuner

    return decorator


def block_of_centers(centers: int) -> int:
    """Rows of a tile that holds all centers: a power of two, and at least the 16 that tensor cores take."""
    return max(16, triton.next_power_of_2(centers))


def strides(name: str, tensor: Tensor, axes: str) -> dict[str, int]:
    """Arguments of a kernel: the strides of a tensor by ``name`` and the letters of its axes."""
    return {f"{name}_{axis}": stride for axis, stride in zip(axes, tensor.stride(), strict=True)}


@triton.jit
def dot(a_MK, b_KN, sum_MN):
    """sum + a @ b in float32; float32 operands are not rounded to TF32."""
    if INTERPRETED:
        # The interpreter multiplies the bit patterns of bfloat16 as if they were integers.
        a_MK = a_MK.to(tl.float32)
        b_KN = b_KN.to(tl.float32)
    return tl.dot(a_MK, b_KN, sum_MN, input_precision="ieee")


@triton.jit
def dot_exact(a_MK, b_KN, sum_MN):
    """sum + a @ b for a in float32 and b in float32 or bfloat16, with no bit of either left out.

    Beside a bfloat16 operand, ``a`` is cut into three bfloat16 pieces that together hold its 24 bits: three products
    on tensor cores instead of one outside of them.
    """
    if b_KN.dtype == tl.bfloat16:
        for _ in tl.static_range(3):
            piece_MK = a_MK.to(tl.bfloat16)
            sum_MN = dot(piece_MK, b_KN, sum_MN)
            a_MK -= piece_MK.to(tl.float32)
    else:
        sum_MN = dot(a_MK, b_KN, sum_MN)
    return sum_MN


@triton.jit
def gumbel_noise(seed, purpose, position, element):
    """The numbers of ``segclip.keyed_random.gumbel`` at one position, for a tile of int32 element numbers."""
    none = tl.zeros_like(element).to(tl.uint32)
    word_0, word_1, word_2, word_3 = tl.philox(
        seed,
        (element // 4).to(tl.uint32),
        (position & 0xFFFFFFFF).to(tl.uint32) + none,
        ((position >> 32) & 0xFFFFFFFF).to(tl.uint32) + none,
        none + purpose,
    )
    place = element % 4
    even = tl.where(place == 0, word_0, word_2)
    odd = tl.where(place == 1, word_1, word_3)
    bits = tl.where(place % 2 == 0, even, odd)
    uniform = ((bits >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07
    return -tl.log(-tl.log(uniform))
