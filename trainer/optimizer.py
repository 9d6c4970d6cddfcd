"""Parameter groups and the optimiser.

The groups are the original's: weights that come from CLIP learn at ``lower_lr``, new modules and the blocks after the
aggregation at ``lr``, the text embeddings at ``lower_text_lr``; each of these again with and without weight decay.
"""

from __future__ import annotations

import re
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from segclip.models.config import ModelConfig
from segclip.models.freezing import frozen_names

__all__ = ["OptimizerConfig", "build_optimizer", "freeze", "frozen_parameters", "parameter_groups"]

TEXT_EMBEDDINGS = re.compile(r"text\.(positional_embedding|token_embedding\.weight)")
# Starts from CLIP and lies below the aggregation, or belongs to the text tower.
PRETRAINED = re.compile(
    r"logit_scale|text\..*|vision\.(class_embedding|positional_embedding|patch_embed|ln_pre|patch_blocks)\b.*"
)
EMBEDDINGS = re.compile(r".*(embedding(\.weight)?|mask_token|centers|logit_scale)")


class OptimizerConfig(BaseModel):
    """AdamW and its groups."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    lr: float = Field(
        gt=0, description="Learning rate of new modules and of the blocks after the aggregation."
    )
    lower_lr: float | None = Field(
        None, gt=0, description="Rate of weights that come from CLIP; null takes lr."
    )
    lower_text_lr: float | None = Field(
        None, gt=0, description="Rate of the text embeddings; null takes lower_lr."
    )
    weight_decay: float = Field(0.05, ge=0, description="Decoupled weight decay.")
    decay_rule: Literal["original", "usual"] = Field(
        "usual",
        description="original: all but biases decay; usual: nor do norms, embeddings and the temperature.",
    )
    betas: tuple[float, float] = Field((0.9, 0.98), description="Decay of the running moments.")
    eps: float = Field(1e-6, gt=0, description="Added to the root of the second moment.")
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

    Parameters that need no gradient are in none.
    """
    lower_lr = config.lower_lr if config.lower_lr is not None else config.lr
    text_lr = config.lower_text_lr if config.lower_text_lr is not None else lower_lr
    rates = {"pretrained": lower_lr, "text_embeddings": text_lr, "new": config.lr}
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {
        (part, decays): [] for part in rates for decays in (True, False)
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[_part(name), _decays(name, parameter, config.decay_rule)].append(parameter)
    return [
        {
            "params": parameters,
            "name": part if decays else f"{part}_no_decay",
            "lr": rates[part],
            "base_lr": rates[part],
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for (part, decays), parameters in groups.items()
        if parameters
    ]


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW over ``parameter_groups``."""
    on_gpu = any(parameter.is_cuda for parameter in model.parameters())
    return torch.optim.AdamW(
        parameter_groups(model, config),
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=on_gpu or None,
    )


def _part(name: str) -> str:
    if TEXT_EMBEDDINGS.fullmatch(name):
        return "text_embeddings"
    return "pretrained" if PRETRAINED.fullmatch(name) else "new"


def _decays(name: str, parameter: nn.Parameter, rule: str) -> bool:
    if rule == "original":
        return "bias" not in name
    return parameter.ndim > 1 and not EMBEDDINGS.fullmatch(name)
