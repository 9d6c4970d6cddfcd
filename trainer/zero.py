"""From our configuration to the dictionary that DeepSpeed takes.

DeepSpeed accepts misspelt top-level keys in silence, so nobody writes its JSON by hand here: each of its settings
that matters is a checked field of ``ZeroConfig`` or ``Fp16Config``.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from segclip.trainer.optimizer import OptimizerConfig
from segclip.trainer.precision import Fp16Config

__all__ = ["ZeroConfig", "check_combination", "deepspeed_config"]

STAGE_3_ONLY = ("gather_ahead_elements", "keep_below_elements", "live_elements")


class ZeroConfig(BaseModel):
    """DeepSpeed's ZeRO: what each rank (a training process, one a GPU) keeps, and what it sends when.

    Stage 1 shares the optimiser's state out over the ranks, 2 also the gradients, 3 also the parameters. Whatever a
    stage shares out, the numbers of the training stay the same.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: Literal[0, 1, 2, 3] = Field(
        1,
        description="0 keeps everything on every rank; 1 shares out the optimiser's state, right up to a few billion "
        "parameters: it sends half as many bytes again as 0; 2 as 1 with fewer gradients; 3 gathers parameters in "
        "every pass, for models that fit no other way.",
    )
    overlap_communication: bool = Field(
        True,
        description="Reduce gradients (and, at stage 3, gather parameters) while the backward pass still computes. "
        "Costs a second reduction bucket of memory. At stage 0 gradients are always reduced after the backward pass.",
    )
    bucket_elements: int = Field(
        50_000_000,
        gt=0,
        description="Gradients that are reduced in one message: larger uses the network better, smaller needs less "
        "memory (two buckets of so many elements are held with overlap_communication) and starts earlier.",
    )
    gather_bucket_elements: int = Field(
        50_000_000,
        gt=0,
        description="Updated parameters that are gathered in one message at stages 1 and 2.",
    )
    gradient_dtype: Literal["auto", "fp32"] = Field(
        "auto",
        description="Type in which gradients are summed over ranks (over micro-batches it is float32 in any case): "
        "that of the parameters, or float32 (twice the memory and bytes sent; for bf16 at stages 2 and 3, or 1 with "
        "offload_optimizer).",
    )
    offload_optimizer: Literal["none", "cpu"] = Field(
        "none",
        description="cpu: float32 weights and moments lie in the host's memory and DeepSpeed's CPU Adam updates them "
        "there (ZeRO-Offload). Frees 12 bytes a parameter and rank of the card; each step moves all gradients down "
        "and all parameters up. Needs stage 1 or more.",
    )
    offload_parameters: Literal["none", "cpu"] = Field(
        "none",
        description="cpu: the parameters of stage 3 lie in the host's memory too and visit the card layer by layer. "
        "Slowest and smallest; needs stage 3 and offload_optimizer.",
    )
    pin_memory: bool = Field(
        True,
        description="What is offloaded lies in page-locked memory, so that copies run beside the computation. Turn "
        "off where the host limits locked memory (ulimit -l).",
    )
    gather_ahead_elements: int = Field(
        50_000_000,
        ge=0,
        description="Stage 3: parameters that are fetched ahead of the layer that needs them; 0 fetches none ahead.",
    )
    keep_below_elements: int = Field(
        100_000,
        ge=0,
        description="Stage 3: parameters with fewer elements stay whole on every rank, since gathering norms and "
        "biases costs more time than they take memory.",
    )
    live_elements: int = Field(
        1_000_000_000,
        gt=0,
        description="Stage 3: gathered parameters that may be held at a time; beyond, they are released after use "
        "and gathered again in the backward pass.",
    )

    @model_validator(mode="after")
    def _offload_fits_the_stage(self) -> Self:
        if self.offload_optimizer != "none" and self.stage == 0:
            raise ValueError(
                f"zero.offload_optimizer is {self.offload_optimizer!r}, which needs the optimiser's state shared out, "
                "but zero.stage is 0: set zero.stage to 1, 2 or 3, or zero.offload_optimizer=none"
            )
        if self.offload_parameters != "none" and self.stage != 3:
            raise ValueError(
                f"zero.offload_parameters is {self.offload_parameters!r}, but zero.stage is {self.stage}, which keeps "
                "all parameters on the card: set zero.stage=3, or zero.offload_parameters=none"
            )
        if self.offload_parameters != "none" and self.offload_optimizer == "none":
            raise ValueError(
                f"zero.offload_parameters is {self.offload_parameters!r} and zero.offload_optimizer is 'none': the "
                "optimiser is larger and needed less often, so set zero.offload_optimizer=cpu first"
            )
        changed = [
            name for name in STAGE_3_ONLY if getattr(self, name) != type(self).model_fields[name].default
        ]
        if changed and self.stage != 3:
            raise ValueError(
                f"zero.{changed[0]} is {getattr(self, changed[0])}, which only stage 3 knows, but zero.stage is "
                f"{self.stage}: leave it out, or set zero.stage=3"
            )
        return self


def check_combination(zero: ZeroConfig, optimizer: OptimizerConfig, precision: str) -> None:
    """Refuse what does not go together, before anything heavy starts.

    Args:
        precision: as configured or, later, as resolved for a device.

    Raises:
        ValueError: names both settings and what to change.
    """
    if optimizer.kind == "lamb" and zero.stage > 0:
        raise ValueError(
            f"optimizer.kind is 'lamb' and zero.stage is {zero.stage}: LAMB scales each parameter's step by the norms "
            "of that parameter and its update, and with ZeRO the optimiser sees flat pieces of many parameters whose "
            "borders move with the number of ranks; set zero.stage=0 or optimizer.kind=adamw"
        )
    if zero.offload_optimizer == "cpu" and optimizer.implementation not in ("auto", "cpu"):
        raise ValueError(
            f"zero.offload_optimizer is 'cpu', where only DeepSpeed's CPU Adam runs, but optimizer.implementation is "
            f"{optimizer.implementation!r}: set that to auto or cpu, or zero.offload_optimizer=none"
        )
    if precision == "fp16" and zero.stage == 0:
        raise ValueError(
            "train.precision is 'fp16' and zero.stage is 0: DeepSpeed's optimiser for these divides the gradients by a "
            "loss scale that the loss was never multiplied by, so that they vanish; set zero.stage=1 "
            "or train.precision=bf16"
        )
    if zero.gradient_dtype == "fp32" and precision in ("bf16", "fp16"):
        if zero.stage == 0:
            raise ValueError(
                f"zero.gradient_dtype is 'fp32' and train.precision is {precision!r}, but zero.stage is 0, where "
                "gradients have the type of the parameters: set zero.stage to 2 or 3, or zero.gradient_dtype=auto"
            )
        if precision == "bf16" and zero.stage == 1 and zero.offload_optimizer == "none":
            raise ValueError(
                "train.precision is 'bf16', zero.stage is 1 and zero.gradient_dtype is 'fp32': for these DeepSpeed "
                "takes another optimiser, which cannot sum the gradients of several backward passes as a step needs; "
                "set zero.stage=2, which has the same cost, or zero.gradient_dtype=auto"
            )


def deepspeed_config(
    zero: ZeroConfig,
    *,
    local_batch: int,
    world_size: int,
    precision: str,
    gradient_clip: float,
    fp16: Fp16Config | None = None,
    other_ranks: bool = False,
) -> dict[str, Any]:
    """The DeepSpeed configuration of a run.

    Gradient accumulation stays at 1: the trainer owns the loop over micro-batches.

    Args:
        local_batch: samples of one rank in one step.
        precision: resolved: bf16, fp16, fp32 or tf32.
        gradient_clip: largest norm of the whole gradient, 0 for none.
        other_ranks: the checkpoint to load was written by another number of ranks.
    """
    sections: dict[str, Any] = {
        "stage": zero.stage,
        "overlap_comm": zero.overlap_communication and zero.stage > 0,
        "reduce_bucket_size": zero.bucket_elements,
        "allgather_bucket_size": zero.gather_bucket_elements,
    }
    if zero.stage == 3:
        sections |= {
            "stage3_prefetch_bucket_size": zero.gather_ahead_elements,
            "stage3_param_persistence_threshold": zero.keep_below_elements,
            "stage3_max_live_parameters": zero.live_elements,
        }
    for name, device in (
        ("offload_optimizer", zero.offload_optimizer),
        ("offload_param", zero.offload_parameters),
    ):
        if device != "none":
            sections[name] = {"device": device, "pin_memory": zero.pin_memory}
    config: dict[str, Any] = {
        "train_batch_size": local_batch * world_size,
        "train_micro_batch_size_per_gpu": local_batch,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": gradient_clip,
        "bf16": {"enabled": precision == "bf16"},
        "zero_optimization": sections,
        # Silence: the progress line and MLflow report what these would.
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }
    if precision == "fp16":
        fp16 = fp16 or Fp16Config()
        config["fp16"] = {
            "enabled": True,
            "loss_scale": 0,  # dynamic
            "initial_scale_power": fp16.initial_scale_power,
            "loss_scale_window": fp16.window,
            "hysteresis": fp16.hysteresis,
            "min_loss_scale": fp16.min_scale,
        }
    if other_ranks:
        config["checkpoint"] = {"load_universal": True}
    if zero.gradient_dtype == "fp32":
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config
