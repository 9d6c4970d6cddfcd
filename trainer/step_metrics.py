"""The figures of a step, of all ranks together."""

from __future__ import annotations

import math
import resource

import torch
import torch.distributed as dist

from segclip.trainer.distributed import Ranks
from segclip.trainer.step import StepResult

__all__ = ["peak_memory", "step_metrics"]


def step_metrics(result: StepResult) -> dict[str, float]:
    """Losses as means over ranks, and the numbers that are equal on all of them."""
    names = sorted(result.losses)
    values = torch.cat(
        [
            torch.stack([result.losses[name].float() for name in names] + [result.centers.used]),
            result.centers.share_G,
        ]
    )
    dist.all_reduce(values)
    means = values.cpu() / dist.get_world_size()
    share_G = means[len(names) + 1 :]
    return dict(zip((f"loss/{name}" for name in names), means.tolist(), strict=False)) | {
        "centers/used": float(means[len(names)]),
        # 1 if all centers hold as many patches, 0 if one holds all.
        "centers/entropy": float(torch.special.entr(share_G).sum() / math.log(len(share_G)))
        if len(share_G) > 1
        else 1.0,
        "centers/dead": float((share_G == 0).sum()),
        "logit_scale": float(result.logit_scale),
        "gradient_norm": result.gradient_norm,
    }


def peak_memory(ranks: Ranks) -> dict[str, float]:
    """Largest memory so far, in GiB: of the card, or of this process on a CPU."""
    if ranks.device.type == "cuda":
        return {"memory/peak_gib": torch.cuda.max_memory_allocated(ranks.device) / 2**30}
    return {"memory/peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
