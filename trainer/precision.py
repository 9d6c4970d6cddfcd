"""Which arithmetic a device is good at."""

from __future__ import annotations

import torch

__all__ = ["resolve_precision"]


def resolve_precision(wanted: str, device: torch.device) -> str:
    """``auto`` becomes ``bf16`` where the hardware multiplies bfloat16 matrices, and ``fp32`` elsewhere.

    A CPU without AVX-512 BF16 or AMX emulates bfloat16 several times slower than it computes float32.
    """
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    capabilities = torch.cpu.get_capabilities()
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"
