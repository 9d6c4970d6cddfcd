"""The DeepSpeed engine of a run and what the trainer asks of it."""

from __future__ import annotations

import logging
import math
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from segclip.models.safe_pickles import write_stages_by_value
from segclip.models.segclip import SegCLIP
from segclip.trainer.config import RunConfig
from segclip.trainer.distributed import Ranks
from segclip.trainer.micro_batches import batch_sizes
from segclip.trainer.optimizer import build_optimizer, freeze, frozen_parameters
from segclip.trainer.precision import resolve_precision, set_matmul_precision
from segclip.trainer.zero import check_combination, deepspeed_config

__all__ = ["build_engine", "compile_network", "gradient_norm", "loss_scale", "set_learning_rates"]


def build_engine(config: RunConfig, ranks: Ranks, resuming: bool = False, other_ranks: bool = False) -> Any:
    """Network, optimiser and ZeRO, ready to train. Every rank starts from the same weights.

    Args:
        resuming: a checkpoint will be loaded into the engine, so the weights of ``model.init_from`` are not needed.
        other_ranks: that checkpoint was written by another number of ranks.

    Raises:
        ValueError: the global batch does not divide over ranks and micro-batches, the weights to start from do not
            fit, or the device does not do what precision, optimiser or ZeRO are set to.
        UserError: the weights to start from could not be downloaded.
    """
    import deepspeed

    # Its own messages are about itself; errors still come through.
    deepspeed.utils.logger.setLevel(logging.ERROR)
    write_stages_by_value()
    local_batch, _ = batch_sizes(config.train.global_batch, ranks.world_size, config.train.micro_batch)
    precision = resolve_precision(config.train.precision, ranks.device)
    # What auto has become may not go with the rest.
    check_combination(config.zero, config.optimizer, precision)
    set_matmul_precision(precision)
    torch.manual_seed(config.seed)
    with _ZerosInsteadOfRandom() if resuming else nullcontext():
        model: nn.Module = SegCLIP(config.model, load_init=not resuming)
    freeze(model, frozen_parameters(config.optimizer, config.model))
    _give_scalars_a_dimension(model)
    model.to(ranks.device).train()
    optimizer = build_optimizer(model, config.optimizer, offload=config.zero.offload_optimizer != "none")
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
            precision=precision,
            gradient_clip=config.train.gradient_clip,
            fp16=config.train.fp16,
            other_ranks=other_ranks,
        ),
    )
    compile_network(model, config.train.compile)
    if config.zero.stage == 0:
        optimizer.state.clear()
        for group in optimizer.param_groups:
            group.pop("step", None)  # where LAMB counts
    return engine


def compile_network(model: nn.Module, what: str) -> None:
    """Let torch.compile work on each transformer block, or on each tower; names of parameters stay as they are."""
    if what == "blocks":
        for module in model.modules():
            if isinstance(module, nn.ModuleList):
                for block in module:
                    block.compile()
    elif what == "towers":
        for tower in model.children():
            tower.compile()


def set_learning_rates(engine: Any, factor: float) -> dict[str, float]:
    """Give every group its base rate times ``factor``; returns the rates by group name."""
    rates = {}
    for group in engine.optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
        rates[group["name"]] = group["lr"]
    return rates


def gradient_norm(engine: Any, step: Any) -> float:
    """Run ``step()`` (the engine's optimiser step) and return the norm of the whole gradient before clipping.

    If that is not finite, on whichever rank it began, all ranks skip the step: weights, moments and their count stay as
    they are, ``engine.skipped_steps`` rises by one and the norm returned is infinite.
    """
    if _is_plain(engine):
        # DeepSpeed neither keeps the norm that it clips with nor looks whether it is finite. Its gradients are reduced
        # by now, so all ranks see the same.
        norm = float(_plain_norm(engine.module))
        if math.isfinite(norm):
            step()
            return norm
        engine.zero_grad()
        engine.global_steps += 1
        engine.skipped_steps += 1
        return math.inf
    step()
    return float(engine.get_global_grad_norm()) if engine.was_step_applied() else math.inf


def loss_scale(engine: Any) -> float | None:
    """By what float16 multiplies the loss; None in other precisions."""
    return float(engine.optimizer.loss_scale) if engine.fp16_enabled() else None


_RANDOM = (Tensor.normal_, Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_)


class _ZerosInsteadOfRandom(TorchFunctionMode):
    """Constructors draw no weights: a checkpoint will bring them, and drawing 189 M of them takes seconds."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in _RANDOM:
            with torch.no_grad():
                return (args[0] if args else kwargs["tensor"]).zero_()
        return function(*args, **(kwargs or {}))


def _give_scalars_a_dimension(model: nn.Module) -> None:
    """DeepSpeed views parameters as bytes to broadcast them, which torch refuses for a parameter without dimensions."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.ndim == 0:
                setattr(module, name, nn.Parameter(parameter.detach().reshape(1), parameter.requires_grad))


def _is_plain(engine: Any) -> bool:
    """Whether torch's optimiser works on the network's own parameters, without ZeRO and without float32 copies."""
    return engine.zero_optimization_stage() == 0 and not engine.bfloat16_enabled()


def _plain_norm(module: nn.Module) -> Tensor:
    return torch.nn.utils.get_total_norm(p.grad for p in module.parameters() if p.grad is not None)
