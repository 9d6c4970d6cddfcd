"""How much of the hardware a run uses: model FLOP/s and MFU.

    MFU = samples per second * training FLOP per sample / (processes * peak FLOP/s of one device)

Training FLOP are those of the network's matrix products, forward and backward, once (``segclip.models.flops``):
recomputation by checkpointing or cached features makes a step longer, not its arithmetic larger (Chowdhery et al.,
"PaLM", 2022, appendix B). The peak is the vendor's figure for dense bfloat16 products, whatever precision the run has.
"""

from __future__ import annotations

import torch

from segclip.models.flops import training_flops
from segclip.trainer.config import RunConfig
from segclip.trainer.distributed import Ranks

__all__ = ["PEAKS", "Utilisation", "peak_flops"]

# Dense bfloat16 TFLOP/s by a part of the device's name, most particular first; from the vendors' data sheets.
PEAKS = (
    ("H100 NVL", 835.0),
    ("H100 PCIe", 756.0),
    ("GH200", 989.0),
    ("H100", 989.0),
    ("H200", 989.0),
    ("H800", 989.0),
    ("B200", 2250.0),
    ("A100", 312.0),
    ("A800", 312.0),
    ("L40S", 362.0),
    ("L4", 121.0),
    ("A10G", 70.0),
    ("RTX 4090", 165.0),
    ("RTX 3090", 71.0),
    ("MI300X", 1307.0),
    ("MI250", 181.0),
)


def peak_flops(name: str) -> float | None:
    """FLOP/s of a device by its name; None for one that is not listed, and for a CPU."""
    return next((tera * 1e12 for part, tera in PEAKS if part in name), None)


class Utilisation:
    """Metrics of speed of a run."""

    def __init__(self, config: RunConfig, ranks: Ranks) -> None:
        self._processes = ranks.world_size
        self._flops = training_flops(
            config.model, config.data.words, reconstruction=config.loss.reconstruction > 0
        )
        name = torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else "cpu"
        self._peak = peak_flops(name)

    def metrics(self, samples_per_second: float) -> dict[str, float]:
        """Args:
            samples_per_second: of all processes.

        Returns:
            ``speed/samples_per_second_per_process``, ``speed/model_tflops_per_process`` and, where the device's peak is
            known, ``speed/mfu`` (0 to 1).
        """
        own = samples_per_second / self._processes
        rate = own * self._flops
        found = {"speed/samples_per_second_per_process": own, "speed/model_tflops_per_process": rate / 1e12}
        if self._peak is not None:
            found["speed/mfu"] = rate / self._peak
        return found
