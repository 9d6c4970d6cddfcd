"""What the engine of a run really holds, after two steps on made-up samples."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from segclip.kernels.contrastive import contrastive_loss
from segclip.models.noise import KeyedNoise
from segclip.models.outputs import TrainOutput
from segclip.trainer.config import RunConfig
from segclip.trainer.distributed import Ranks
from segclip.trainer.engine import build_engine, gradient_norm, set_learning_rates
from segclip.trainer.memory import CardMemory, micro_batch
from segclip.trainer.reduction import one_reduction

__all__ = ["measure"]


def measure(config: RunConfig, ranks: Ranks) -> tuple[CardMemory, int | None]:
    """Build the engine of ``config`` (from random weights), make two steps, and count bytes; called by all ranks.

    Parameters, gradients and optimiser are counted by the memory behind their tensors, gradients when the backward
    passes have ended; activations are what the forward pass of one micro-batch leaves for the backward pass. With
    activation checkpointing these are not seen, and None.

    Returns:
        What this rank holds, and the most that it ever had on its GPU; None on a CPU.

    Raises:
        ValueError: see ``build_engine``.
    """
    engine = build_engine(config, ranks, resuming=True)
    samples = micro_batch(config, ranks.world_size)
    several = samples < config.train.global_batch // ranks.world_size
    on_gpu = ranks.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(ranks.device)
    kept = gradients = 0
    for step in range(2):
        set_learning_rates(engine, 1.0)
        with one_reduction(engine) if several else contextlib.nullcontext() as sums:
            for turn in range(2 if several else 1):
                sizes: dict[int, int] = {}
                with _saved(sizes, engine):
                    output = _forward(engine, config, samples, seed=2 * step + turn)
                kept = sum(sizes.values())
                engine.backward(_loss(output, config))
                del output
                if sums is not None:
                    sums.add()
            if sums is not None:
                gradients = _bytes((*_gradients(engine), *sums.held()))
        gradients = max(gradients, _bytes(_gradients(engine)))
        gradient_norm(engine, engine.step)
    state = _bytes(_optimizer_tensors(engine))
    parameters = _bytes(_parameter_tensors(engine))
    offloads = config.zero.offload_optimizer == "cpu"
    measured = CardMemory(
        parameters=parameters,
        gradients=0 if offloads and not several else gradients,
        optimizer=0 if offloads else state,
        buckets=None,
        activations=None if config.model.activation_checkpointing else kept,
        host=state if offloads else 0,
    )
    peak = int(torch.cuda.max_memory_allocated(ranks.device)) if on_gpu else None
    engine.destroy()
    return measured, peak


def _forward(engine: Any, config: RunConfig, samples: int, seed: int) -> TrainOutput:
    generator = torch.Generator().manual_seed(seed)
    size, words = config.model.image_size, config.data.words
    images_BCHW = torch.randint(0, 256, (samples, 3, size, size), dtype=torch.uint8, generator=generator)
    tokens_BT = torch.randint(1, config.model.vocab_size - 2, (samples, words), generator=generator)
    tokens_BT[:, -1] = config.model.vocab_size - 1
    superpixels_BL = torch.randint(0, 64, (samples, config.model.patches), generator=generator)
    device = engine.device
    output: TrainOutput = engine(
        images_BCHW.to(device),
        tokens_BT.to(device),
        superpixels_BL.to(device),
        KeyedNoise(seed, torch.arange(samples, device=device)),
        with_superpixel=config.loss.superpixel_kl > 0,
        with_reconstruction=config.loss.reconstruction > 0,
    )
    return output


def _loss(output: TrainOutput, config: RunConfig) -> Tensor:
    contrastive = contrastive_loss(
        output.image_embed_BE, output.text_embed_BE, output.logit_scale, group=None
    )
    return (
        config.loss.contrastive * contrastive
        + config.loss.superpixel_kl * output.loss_superpixel
        + config.loss.reconstruction * output.loss_reconstruction
    )


@contextlib.contextmanager
def _saved(sizes: dict[int, int], engine: Any) -> Iterator[None]:
    """Bytes of each piece of memory that is kept for the backward pass and is no parameter, by its address."""
    own = {parameter.untyped_storage().data_ptr() for parameter in engine.module.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and not isinstance(tensor, torch.nn.Parameter):
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield


def _bytes(tensors: Iterable[Tensor | None]) -> int:
    """Memory behind ``tensors``, each piece counted once."""
    pieces = {}
    for tensor in tensors:
        if tensor is not None:
            pieces[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(pieces.values())


def _parameter_tensors(engine: Any) -> Iterator[Tensor]:
    for parameter in engine.module.parameters():
        if hasattr(parameter, "ds_tensor"):  # stage 3: this rank's share
            yield parameter.ds_tensor
        yield parameter.data


def _gradients(engine: Any) -> Iterator[Tensor | None]:
    for parameter in engine.module.parameters():
        yield parameter.grad
    for shares in (getattr(engine.optimizer, "averaged_gradients", None) or {}).values():
        yield from shares or ()
    yield getattr(engine.optimizer, "grad_partitions_flat_buffer", None)


def _optimizer_tensors(engine: Any) -> Iterator[Tensor]:
    """Moments, and the float32 weights beside those that the network computes with."""
    own = {parameter.data_ptr() for parameter in engine.module.parameters()}
    for parameter, state in engine.basic_optimizer.state.items():
        if parameter.data_ptr() not in own:
            yield parameter
        yield from (value for value in state.values() if isinstance(value, Tensor))
