"""From our configuration to the dictionary that DeepSpeed takes.

DeepSpeed accepts misspelt top-level keys in silence, so nobody writes its JSON by hand here: each of its settings
that matters is a checked field of ``ZeroConfig``.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["ZeroConfig", "deepspeed_config"]


class ZeroConfig(BaseModel):
    """What each rank keeps: stage 1 shards the optimiser, 2 also the gradients, 3 also the parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: Literal[0, 1, 2, 3] = Field(
        1, description="0 replicates everything; 1 is right up to a few billion parameters."
    )
    overlap_communication: bool = Field(
        True, description="Reduce gradients while the backward pass still runs."
    )
    bucket_elements: int = Field(
        50_000_000, gt=0, description="Elements reduced at once: larger is faster, smaller needs less memory."
    )


def deepspeed_config(
    zero: ZeroConfig, *, local_batch: int, world_size: int, precision: str, gradient_clip: float
) -> dict[str, Any]:
    """The DeepSpeed configuration of a run.

    Gradient accumulation stays at 1: the trainer owns the loop over micro-batches.

    Args:
        local_batch: samples of one rank in one step.
        gradient_clip: largest norm of the whole gradient, 0 for none.
    """
    return {
        "train_batch_size": local_batch * world_size,
        "train_micro_batch_size_per_gpu": local_batch,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": gradient_clip,
        "bf16": {"enabled": precision == "bf16"},
        "zero_optimization": {
            "stage": zero.stage,
            "overlap_comm": zero.overlap_communication and zero.stage > 0,
            "reduce_bucket_size": zero.bucket_elements,
            "allgather_bucket_size": zero.bucket_elements,
        },
        # Silence: the progress line and MLflow report what these would.
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }
