"""Which arithmetic a device is good at, and how float16 keeps its gradients in range."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Fp16Config", "Precision", "resolve_precision", "set_matmul_precision"]

Precision = Literal["auto", "bf16", "fp16", "fp32", "tf32"]
TENSOR_FLOAT_CAPABILITY = (8, 0)


class Fp16Config(BaseModel):
    """Dynamic loss scaling: the loss is multiplied by 2^n so that small gradients do not vanish in float16.

    A step whose gradients overflow is skipped and the scale halved; after ``window`` good steps it is doubled.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    initial_scale_power: int = Field(
        16,
        ge=0,
        le=24,
        description="The loss scale starts at 2 to this power; the first steps may be skipped.",
    )
    window: int = Field(
        1000, gt=0, description="Steps in a row without overflow after which the scale is doubled."
    )
    hysteresis: int = Field(
        2, gt=0, description="So many overflows are let pass before the scale is first halved."
    )
    min_scale: int = Field(1, gt=0, description="The scale is never lower than this.")


def resolve_precision(wanted: str, device: torch.device) -> str:
    """``auto`` becomes ``bf16`` where the hardware multiplies bfloat16 matrices, and ``fp32`` elsewhere.

    A CPU without AVX-512 BF16 or AMX emulates bfloat16 several times slower than it computes float32.

    Raises:
        ValueError: the device does not compute in what is wanted. (bf16 runs everywhere, if slowly.)
    """
    if wanted == "fp16" and not _multiplies_float16(device):
        raise ValueError(
            f"train.precision is 'fp16', which {_name(device)} does not multiply: set it to fp32, or to auto"
        )
    if wanted == "tf32" and not _has_tensor_float(device):
        raise ValueError(
            f"train.precision is 'tf32', which {_name(device)} does not have (NVIDIA cards since Ampere do): "
            "set it to fp32, or to auto"
        )
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    capabilities = torch.cpu.get_capabilities()
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"


def set_matmul_precision(precision: str) -> None:
    """Let float32 products run in TensorFloat-32 for ``tf32``, and in float32 for all else (also what bf16 leaves in
    float32: the contrastive logits)."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")


def _multiplies_float16(device: torch.device) -> bool:
    if device.type == "cuda":
        return True
    # DeepSpeed asks the same before it trains.
    from deepspeed.accelerator import get_accelerator

    return bool(get_accelerator().is_fp16_supported())


def _has_tensor_float(device: torch.device) -> bool:
    return (
        device.type == "cuda"
        and torch.version.hip is None
        and torch.cuda.get_device_capability(device) >= TENSOR_FLOAT_CAPABILITY
    )


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "this CPU"
