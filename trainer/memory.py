"""What a run needs of each card, predicted from its configuration alone.

With P trained and F frozen parameters, N ranks, b bytes an element of the precision (2 for bf16 and fp16, 4 for fp32
and tf32), g bytes of a gradient (b, or 4 with ``zero.gradient_dtype=fp32``):

==================  ========================================================================================
parameters          b (P + F) at stages 0 to 2; b ((P + F) / N + K) at stage 3, K the elements of parameters with at
                    most ``zero.keep_below_elements``, which stay whole; b K with ``offload_parameters``
gradients           b P at stage 0; g P / N from stage 1 on, where each rank keeps its share of what was reduced; 0 with
                    ``offload_optimizer``, where they leave with their bucket. With several micro-batches in a step,
                    b P at every stage, and 4 P more for their float32 sum unless b is 4 anyway
optimiser           8 P of moments, and 4 P of float32 weights beside those that the network computes with (none at
                    stage 0 in float32); divided by N from stage 1 on; 0 with ``offload_optimizer``
buckets             g ``bucket_elements``, twice with ``overlap_communication``, from stage 1 on (once at stage 3,
                    which also holds b (``gather_ahead_elements`` + the largest parameter), at most b (P + F))
activations         for each sample of a micro-batch, what the backward pass needs: below
==================  ========================================================================================

A block of width C keeps 16 C elements a token: the input and output of each norm (4 C), queries, keys and values (3 C),
the output of the attention (C), and of the perceptron before and after its activation (8 C). So, for L patches, K of
them visible to the reconstruction pass, T words and G centers, one sample keeps b times

- vision: 16 C (first-stage blocks (L + K) + center blocks G + reconstruction blocks K),
- aggregation, for L and again for K patches: (4 a + 5) C (L + G) + 14 a C G + 12 C G, with a cross-attention blocks,
- patches: 3 p^2 L + 3 C L,
- text of width W: 16 W T a block, and 3 W T,
- decoder of width D = C/2: 16 D L a block, and 5 D L + 3 p^2 L,

and in float32, whatever the precision, 4 + H statistics a token of a block of H heads, and twice the pixels of the
L - K masked patches. Beside these, whatever the size of the micro-batch, b times the weights of all perceptrons with
QuickGELU, whose scaled copies are kept, those of the first stage for both passes. On a CPU, plain attention (few
tokens) also keeps its weights: H T^2 a block. With ``model.activation_checkpointing`` a block keeps its input, C a
token, and one block at a time the rest.

These are what the tensors need; the allocator's fragmentation (5 to 10 %), the CUDA context (about 0.5 GiB) and NCCL's
buffers come on top, and so do the temporary tensors of single operations.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from segclip.models.attention import PLAIN_SCORES_CPU
from segclip.models.config import ModelConfig
from segclip.models.mlp import ScaledLinear
from segclip.models.segclip import SegCLIP
from segclip.trainer.config import RunConfig
from segclip.trainer.micro_batches import batch_sizes
from segclip.trainer.optimizer import freeze, frozen_parameters
from segclip.trainer.zero import ZeroConfig

__all__ = [
    "REMEDIES",
    "CardMemory",
    "Counts",
    "activation_bytes",
    "count_parameters",
    "micro_batch",
    "predict",
    "state_bytes",
]

# What frees memory, the cheapest in time first.
REMEDIES = (
    "train.micro_batch smaller (up to 1/3 more computing)",
    "model.activation_checkpointing=true (1/3 more computing)",
    "zero.stage=2, then 3 (3 gathers all parameters in every pass)",
    "zero.offload_optimizer=cpu, then zero.offload_parameters=cpu (copies to the host in each step)",
)
BYTES = {"bf16": 2, "fp16": 2, "fp32": 4, "tf32": 4}


@dataclass(frozen=True)
class CardMemory:
    """Bytes that one rank holds on its card; None what was not measured."""

    parameters: int
    gradients: int
    optimizer: int
    buckets: int | None
    activations: int | None
    host: int = 0
    """In the memory of the host, for this rank: what is offloaded."""

    @property
    def total(self) -> int:
        """On the card, all at once."""
        return (
            self.parameters + self.gradients + self.optimizer + (self.buckets or 0) + (self.activations or 0)
        )


@dataclass(frozen=True)
class Counts:
    """Elements of the parameters of a network."""

    trained: int
    frozen: int
    small: int
    """Of parameters that stage 3 keeps whole."""
    largest: int
    scaled: int
    """Of weights whose scaled copies the backward pass needs, counted once for each pass that uses them."""


def predict(config: RunConfig, world_size: int, precision: str, device: str) -> CardMemory:
    """Memory of one of ``world_size`` ranks.

    Args:
        precision: resolved, not ``auto``.
        device: ``cuda`` or ``cpu``: what attention keeps depends on it.

    Raises:
        ValueError: the batch does not divide over so many ranks.
    """
    counts = count_parameters(config)
    samples = micro_batch(config, world_size)
    several = samples < config.train.global_batch // world_size
    state = state_bytes(config.zero, counts, world_size, precision, several)
    activations = activation_bytes(config.model, config.data.words, samples, precision, device, counts.scaled)
    return replace(state, activations=activations)


def micro_batch(config: RunConfig, world_size: int) -> int:
    """Samples that one rank computes with gradients at a time.

    Raises:
        ValueError: see ``batch_sizes``.
    """
    return batch_sizes(config.train.global_batch, world_size, config.train.micro_batch)[1]


def count_parameters(config: RunConfig) -> Counts:
    """Build the network without memory for it and count."""
    with torch.device("meta"):
        model = SegCLIP(config.model, load_init=False)
    freeze(model, frozen_parameters(config.optimizer, config.model))
    sizes = [parameter.numel() for parameter in model.parameters()]
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return Counts(
        trained=trained,
        frozen=sum(sizes) - trained,
        small=sum(size for size in sizes if size <= config.zero.keep_below_elements),
        largest=max(sizes),
        scaled=_scaled(model, passes=2 if config.loss.reconstruction > 0 else 1),
    )


def state_bytes(
    zero: ZeroConfig, counts: Counts, world_size: int, precision: str, several: bool = False
) -> CardMemory:
    """Everything but activations.

    Args:
        several: whether a step has several micro-batches.
    """
    element = BYTES[precision]
    gradient = 4 if zero.gradient_dtype == "fp32" else element
    both = counts.trained + counts.frozen
    share = world_size if zero.stage >= 1 else 1
    partition = -(-counts.trained // share)
    has_copies = zero.stage >= 1 or element < 4
    state = partition * (8 + (4 if has_copies else 0))

    parameters = both * element
    on_host = 0
    if zero.stage == 3:
        # Whole copies beside the shares; with one rank, the share is the whole.
        small = counts.small if world_size > 1 else 0
        parameters = element * (-(-both // world_size) + small)
    if zero.offload_parameters == "cpu":
        parameters = element * counts.small
        on_host += element * -(-both // world_size)

    whole = element * counts.trained
    gradients = whole if zero.stage == 0 else gradient * partition
    if zero.offload_optimizer == "cpu":
        # Down there, gradients are float32, and there is a buffer for one of the network's own type.
        on_host += state + partition * (4 + element)
        state = gradients = 0
    if several:
        gradients = whole + (4 * counts.trained if element < 4 else 0)

    buckets = 0
    if zero.stage in (1, 2):
        buckets = gradient * zero.bucket_elements * (2 if zero.overlap_communication else 1)
    elif zero.stage == 3:
        ahead = min(zero.gather_ahead_elements + counts.largest, both)
        buckets = gradient * zero.bucket_elements + element * ahead
    return CardMemory(parameters, gradients, state, buckets, None, on_host)


def activation_bytes(
    model: ModelConfig, words: int, samples: int, precision: str, device: str, scaled: int
) -> int:
    """What ``samples`` samples keep for the backward pass, by the formulae above, with all losses but the text's.

    Args:
        scaled: ``Counts.scaled``.
    """
    width, narrow, text = model.vision_width, model.decoder_width, model.text_width
    patches, centers = model.kept_patches(model.patches), model.centers
    visible = model.visible_patches(model.patches)
    pixels = 3 * model.patch_size**2
    first = model.first_stage_layers
    last = model.vision_layers - first
    # Tokens, width, heads and number of the blocks of each stack.
    stacks = [
        (patches, width, model.vision_heads, first),
        (visible, width, model.vision_heads, first),
        (centers, width, model.vision_heads, last),
        (visible, width, model.vision_heads, last),
        (words, text, model.text_heads, model.text_layers),
        (model.patches, narrow, model.decoder_heads, model.decoder_depth),
    ]
    element = BYTES[precision]
    plain = device == "cpu" and element == 4
    kept = largest = statistics = 0
    for tokens, wide, heads, number in stacks:
        inside = 16 * wide * tokens
        if plain and tokens**2 <= PLAIN_SCORES_CPU:
            inside += heads * tokens**2 + wide * tokens
        largest = max(largest, inside)
        statistics += number * (4 + heads) * tokens
        kept += number * (wide * tokens if model.activation_checkpointing else inside)
    if model.activation_checkpointing:
        kept += largest
    cross = model.center_layers
    for tokens in (patches, visible):
        looking = 4 * cross * width * (tokens + centers) + 14 * cross * width * centers
        kept += 2 * cross * width * centers if model.activation_checkpointing else looking
        kept += 5 * width * (tokens + centers) + 12 * width * centers
    kept += pixels * model.patches + 3 * width * patches
    kept += 3 * text * words
    kept += 5 * narrow * model.patches + pixels * model.patches
    # What is recomputed is not kept.
    if model.activation_checkpointing:
        scaled = statistics = 0
    floats = statistics + 2 * pixels * (model.patches - visible)
    return samples * (element * kept + 4 * floats) + element * scaled


def _scaled(model: SegCLIP, passes: int) -> int:
    """Weights of the scaled layers; the first stage of vision and the aggregation run once for each pass."""
    total = 0
    for name, module in model.named_modules():
        if isinstance(module, ScaledLinear):
            twice = name.startswith(("vision.patch_blocks", "vision.aggregation"))
            total += module.weight.numel() * (passes if twice else 1)
    return total
