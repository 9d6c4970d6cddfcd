"""The DeepSpeed engine of a run and what the trainer asks of it."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from segclip.models.segclip import SegCLIP
from segclip.trainer.config import RunConfig
from segclip.trainer.distributed import Ranks
from segclip.trainer.micro_batches import batch_sizes
from segclip.trainer.optimizer import build_optimizer, freeze, frozen_parameters
from segclip.trainer.precision import resolve_precision
from segclip.trainer.zero import deepspeed_config

__all__ = ["build_engine", "gradient_norm", "set_learning_rates"]


def build_engine(config: RunConfig, ranks: Ranks, resuming: bool = False) -> Any:
    """Network, optimiser and ZeRO, ready to train. Every rank starts from the same weights.

    Args:
        resuming: a checkpoint will be loaded into the engine, so the weights of ``model.init_from`` are not needed.

    Raises:
        ValueError: the global batch does not divide over ranks and micro-batches, or the weights to start from do not
            fit.
        UserError: the weights to start from could not be downloaded.
    """
    import deepspeed

    # Its own messages are about itself; errors still come through.
    deepspeed.utils.logger.setLevel(logging.ERROR)
    local_batch, _ = batch_sizes(config.train.global_batch, ranks.world_size, config.train.micro_batch)
    torch.manual_seed(config.seed)
    model: nn.Module = SegCLIP(config.model, load_init=not resuming)
    freeze(model, frozen_parameters(config.optimizer, config.model))
    _give_scalars_a_dimension(model)
    model.to(ranks.device).train()
    optimizer = build_optimizer(model, config.optimizer)
    # For bfloat16 without ZeRO, DeepSpeed makes room for the moments by a step with zero gradients. At rate 0 it decays
    # no weight, and what it counted is forgotten: otherwise Adam's bias correction would be one step ahead.
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config=deepspeed_config(
            config.zero,
            local_batch=local_batch,
            world_size=ranks.world_size,
            precision=resolve_precision(config.train.precision, ranks.device),
            gradient_clip=config.train.gradient_clip,
        ),
    )
    if config.zero.stage == 0:
        optimizer.state.clear()
    return engine


def set_learning_rates(engine: Any, factor: float) -> dict[str, float]:
    """Give every group its base rate times ``factor``; returns the rates by group name."""
    rates = {}
    for group in engine.optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
        rates[group["name"]] = group["lr"]
    return rates


def gradient_norm(engine: Any, step: Any) -> float:
    """Run ``step()`` (the engine's optimiser step) and return the norm of the whole gradient before clipping."""
    # Plain data parallelism does not keep the norm that it clips with.
    own = (
        _plain_norm(engine.module)
        if engine.zero_optimization_stage() == 0 and not engine.bfloat16_enabled()
        else None
    )
    step()
    return float(own if own is not None else engine.get_global_grad_norm())


def _give_scalars_a_dimension(model: nn.Module) -> None:
    """DeepSpeed views parameters as bytes to broadcast them, which torch refuses for a parameter without dimensions."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.ndim == 0:
                setattr(module, name, nn.Parameter(parameter.detach().reshape(1), parameter.requires_grad))


def _plain_norm(module: nn.Module) -> Tensor:
    return torch.nn.utils.get_total_norm(p.grad for p in module.parameters() if p.grad is not None)
