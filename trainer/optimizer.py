"""Parameter groups and the optimiser.

The groups are the original's: weights that come from CLIP learn at ``lower_lr``, new modules and the blocks after the
aggregation at ``lr``, the text embeddings at ``lower_text_lr``; each of these again with and without weight decay.
With ``layer_decay`` each is divided further by the depth of its parameters.

Every implementation of AdamW makes the same step to rounding; they differ in speed and in where they run.
"""

from __future__ import annotations

import re
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from segclip.models.config import ModelConfig
from segclip.models.freezing import frozen_names
from segclip.trainer.distributed import prepare_builds

__all__ = [
    "DecayByPart",
    "OptimizerConfig",
    "build_optimizer",
    "choose_implementation",
    "freeze",
    "frozen_parameters",
    "parameter_groups",
]

TEXT_EMBEDDINGS = re.compile(r"text\.(positional_embedding|token_embedding\.weight)")
# Starts from CLIP and lies below the aggregation, or belongs to the text tower.
PRETRAINED = re.compile(
    r"logit_scale|text\..*|vision\.(class_embedding|positional_embedding|patch_embed|ln_pre|patch_blocks)\b.*"
)
EMBEDDINGS = re.compile(r".*(embedding(\.weight)?|mask_token|centers|logit_scale)")
# What stands below the first block of each tower.
INPUTS = re.compile(
    r"vision\.(class_embedding|positional_embedding|patch_embed|ln_pre)\b.*|text\.(positional|token)_embedding\b.*"
)
BLOCKS = re.compile(r"(vision\.patch_blocks|vision\.center_blocks|text\.transformer\.resblocks)\.(\d+)\..*")


class DecayByPart(BaseModel):
    """Weight decay of each part of the network; null takes ``weight_decay``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pretrained: float | None = Field(None, ge=0, description="Weights that come from CLIP.")
    text_embeddings: float | None = Field(None, ge=0, description="Embeddings of words and their positions.")
    new: float | None = Field(
        None, ge=0, description="What does not come from CLIP, and the blocks on centers."
    )


class OptimizerConfig(BaseModel):
    """The optimiser, and how fast which part of the network learns."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["adamw", "lamb"] = Field(
        "adamw",
        description="lamb scales each parameter's step to that parameter's norm, for very large batches; only at "
        "zero.stage 0, where the optimiser sees whole parameters.",
    )
    implementation: Literal["auto", "torch", "fused", "deepspeed", "cpu"] = Field(
        "auto",
        description="Which AdamW runs. torch: plain torch. fused: torch's fused kernel. deepspeed: DeepSpeed's fused "
        "kernel, on a GPU, compiled at the first start. cpu: DeepSpeed's CPU Adam, compiled at the first start, for "
        "zero.offload_optimizer or a run on CPUs. auto: cpu with offloading, else fused on a GPU and torch on a CPU.",
    )

    lr: float = Field(
        gt=0,
        description="Highest learning rate of what does not come from CLIP and of the blocks on centers.",
    )
    lower_lr: float | None = Field(
        None, gt=0, description="Rate of weights that come from CLIP, below the centers; null takes lr."
    )
    lower_text_lr: float | None = Field(
        None, gt=0, description="Rate of the embeddings of words and of their positions; null takes lower_lr."
    )
    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Rate of a block as a share of that of the block above it, in both towers: block k of n learns at "
        "layer_decay^(n - k) of its rate (k from 0), what stands below the blocks at layer_decay^(n + 1). New modules, "
        "the last norms and the projections keep their rate. 1 is the original.",
    )
    weight_decay: float = Field(
        0.05,
        ge=0,
        description="Share of each weight, times the rate, by which it shrinks at a step (decoupled weight decay).",
    )
    weight_decay_by_part: DecayByPart = Field(
        DecayByPart(), description="Weight decay of each part, where it shall not be weight_decay."
    )
    decay_rule: Literal["original", "usual"] = Field(
        "usual",
        description="original: all but biases decay; usual: nor do norms, embeddings and the temperature.",
    )
    betas: tuple[float, float] = Field(
        (0.9, 0.98),
        description="How much of the running means of the gradient and of its square a step keeps.",
    )
    eps: float = Field(
        1e-6,
        gt=0,
        description="Added to what a step is divided by, the root of the mean square, so that it is never zero.",
    )
    frozen: tuple[str, ...] = Field(
        (), description="Parameters that stay as they start, by name or prefix of a name."
    )
    freeze_layers: int | None = Field(
        None,
        ge=-1,
        description="The original's rule, beside frozen: the embeddings of both towers and the first so many blocks of "
        "each stay as they start (0, its default: the embeddings alone; -1: only patch embedding and positions of "
        "images); null freezes nothing by rule.",
    )
    freeze_text_layers: int = Field(
        0, ge=0, description="At least so many text blocks stay as they start; needs freeze_layers."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.freeze_text_layers and self.freeze_layers is None:
            raise ValueError(
                f"freeze_text_layers is {self.freeze_text_layers}, but freeze_layers is null: set that to 0 or more, "
                "or to -1 to freeze as little else as the rule allows"
            )
        if self.kind == "lamb" and self.implementation not in ("auto", "torch"):
            raise ValueError(
                f"optimizer.kind is 'lamb', which has no implementation {self.implementation!r}: set "
                "optimizer.implementation=auto, or optimizer.kind=adamw"
            )
        return self


def frozen_parameters(optimizer: OptimizerConfig, model: ModelConfig) -> tuple[str, ...]:
    """Names, or beginnings of names, of all that ``frozen`` and the original's rule keep as it starts.

    Raises:
        ValueError: the rule counts more blocks than there are.
    """
    if optimizer.freeze_layers is None:
        return optimizer.frozen
    try:
        by_rule = frozen_names(model, optimizer.freeze_layers, optimizer.freeze_text_layers)
    except ValueError as error:
        raise ValueError(f"optimizer.freeze_{error}") from error
    return (*optimizer.frozen, *by_rule)


def freeze(model: nn.Module, frozen: tuple[str, ...]) -> None:
    """Stop the gradients of all parameters whose dotted name is, or begins with, one of ``frozen``.

    Raises:
        ValueError: an entry that matches no parameter.
    """
    names = dict(model.named_parameters())
    for prefix in frozen:
        chosen = [name for name in names if name == prefix or name.startswith(prefix + ".")]
        if not chosen:
            tops = sorted({".".join(name.split(".")[:2]) for name in names})
            raise ValueError(
                f"optimizer.frozen names {prefix!r}, which is no parameter; there are {', '.join(tops)}"
            )
        for name in chosen:
            names[name].requires_grad_(False)


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Groups for a torch optimiser, each with its ``name``, ``lr``, ``base_lr`` and ``weight_decay``; none is empty.

    Parameters that need no gradient are in none. The names are the parts', with ``_no_decay`` where nothing decays, and
    with ``layer_decay`` how many blocks the parameters are from the top: ``pretrained_depth03_no_decay``.
    """
    lower_lr = config.lower_lr if config.lower_lr is not None else config.lr
    text_lr = config.lower_text_lr if config.lower_text_lr is not None else lower_lr
    rates = {"pretrained": lower_lr, "text_embeddings": text_lr, "new": config.lr}
    blocks = _count_blocks(model)
    groups: dict[tuple[str, int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            depth = _depth(name, blocks) if config.layer_decay < 1 else 0
            key = (_part(name), depth, _decays(name, parameter, config.decay_rule))
            groups.setdefault(key, []).append(parameter)
    parts = list(rates)
    found = []
    for part, depth, decays in sorted(groups, key=lambda key: (parts.index(key[0]), key[1], not key[2])):
        own_decay = getattr(config.weight_decay_by_part, part)
        rate = rates[part] * config.layer_decay**depth
        found.append(
            {
                "params": groups[part, depth, decays],
                "name": part + (f"_depth{depth:02d}" if depth else "") + ("" if decays else "_no_decay"),
                "lr": rate,
                "base_lr": rate,
                "weight_decay": (config.weight_decay if own_decay is None else own_decay) if decays else 0.0,
            }
        )
    return found


def choose_implementation(config: OptimizerConfig, device: torch.device, offload: bool) -> str:
    """``torch``, ``fused``, ``deepspeed`` or ``cpu``.

    Args:
        device: where the parameters lie.
        offload: the optimiser's state lies in the host's memory.

    Raises:
        ValueError: the implementation does not run there.
    """
    wanted = config.implementation
    if wanted == "auto":
        if offload:
            return "cpu"
        return "fused" if device.type == "cuda" and config.kind == "adamw" else "torch"
    if wanted == "deepspeed" and device.type != "cuda":
        raise ValueError(
            "optimizer.implementation is 'deepspeed', a kernel for GPUs, and there is none: "
            "set it to auto, torch, fused or cpu"
        )
    if wanted == "cpu" and device.type != "cpu" and not offload:
        raise ValueError(
            "optimizer.implementation is 'cpu', but the parameters lie on a GPU: set zero.offload_optimizer=cpu to "
            "bring the optimiser to the host, or optimizer.implementation=auto"
        )
    return wanted


def build_optimizer(
    model: nn.Module, config: OptimizerConfig, offload: bool = False
) -> torch.optim.Optimizer:
    """AdamW or LAMB over ``parameter_groups``.

    Args:
        offload: the optimiser's state lies in the host's memory.

    Raises:
        ValueError: see ``choose_implementation``.
    """
    device = next(model.parameters()).device
    implementation = choose_implementation(config, device, offload)
    groups = parameter_groups(model, config)
    settings: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "eps": config.eps}
    if config.kind == "lamb":
        from timm.optim import Lamb

        # Clipping is the engine's: it sees the whole gradient.
        return Lamb(groups, **settings, max_grad_norm=None)
    if implementation in ("cpu", "deepspeed"):
        prepare_builds()
    if implementation == "cpu":
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(groups, **settings, adamw_mode=True)
    if implementation == "deepspeed":
        from deepspeed.ops.adam import FusedAdam

        return FusedAdam(groups, **settings, adam_w_mode=True)
    return torch.optim.AdamW(groups, **settings, fused=implementation == "fused" or None)


def _count_blocks(model: nn.Module) -> dict[str, int]:
    """Blocks of each stack that ``BLOCKS`` names."""
    counts: dict[str, int] = {}
    for name, _ in model.named_parameters():
        if found := BLOCKS.fullmatch(name):
            counts[found[1]] = max(counts.get(found[1], 0), int(found[2]) + 1)
    return counts


def _depth(name: str, blocks: dict[str, int]) -> int:
    """How many steps below the top of its tower a parameter stands; 0 for what stands above the blocks."""
    stages = ("vision.patch_blocks", "vision.center_blocks")
    vision = sum(blocks.get(stage, 0) for stage in stages)
    text = blocks.get("text.transformer.resblocks", 0)
    if INPUTS.fullmatch(name):
        return (vision if name.startswith("vision.") else text) + 1
    found = BLOCKS.fullmatch(name)
    if found is None:
        return 0
    number = int(found[2]) + (blocks.get(stages[0], 0) if found[1] == stages[1] else 0)
    return (vision if found[1] in stages else text) - number


def _part(name: str) -> str:
    if TEXT_EMBEDDINGS.fullmatch(name):
        return "text_embeddings"
    return "pretrained" if PRETRAINED.fullmatch(name) else "new"


def _decays(name: str, parameter: nn.Parameter, rule: str) -> bool:
    if rule == "original":
        return "bias" not in name
    return parameter.ndim > 1 and not EMBEDDINGS.fullmatch(name)
