"""One rank of the tests of large batches. Arguments: file for the results, names of cases, all in one process group.

Also the batches, the settings of each case, and the truth that they are held against: ``plain_training``, one process
that has the whole batch in one pass, without DeepSpeed and without the trainer's step.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from segclip.data_pipelines.samples import Batch
from segclip.kernels.contrastive import contrastive_loss_reference
from segclip.models.losses import false_negatives
from segclip.models.noise import KeyedNoise
from segclip.models.segclip import SegCLIP
from segclip.trainer.config import RunConfig
from segclip.trainer.optimizer import build_optimizer

GLOBAL_BATCH, STEPS, SEED = 32, 5, 3
VOCABULARY, WORDS, IMAGE, PATCH = 64, 16, 32, 8

LOSSES: dict[str, dict[str, Any]] = {
    "contrastive": {"superpixel_kl": 0.0, "reconstruction": 0.0},
    "all": {"superpixel_kl": 3.0, "reconstruction": 1.0, "text_reconstruction": 0.5},
}
# All that draws random numbers or looks at other ranks' samples.
DRAWS = {"model.drop_path": 0.3, "model.patch_dropout": 0.25, "loss.skip_false_negatives": True}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "draws": DRAWS,
    "ring": {"loss.ring": True},
    "checkpointing": {"model.activation_checkpointing": True},
    "compiled": {},
    "captured": {},
    "bf16": {"train.precision": "bf16"},
}


@dataclass(frozen=True)
class Case:
    """One training of five steps."""

    stage: int
    passes: int
    """Forward passes of a rank in a step, the last one perhaps smaller."""
    losses: str
    variant: str = "plain"
    micro_batch: int = field(default=0)
    """Samples of one pass, where their number does not divide a rank's."""

    @classmethod
    def parse(cls, name: str) -> Case:
        """Of ``str(case)``."""
        stage, passes, losses, variant, micro_batch = name.split(",")
        return cls(int(stage), int(passes), losses, variant, int(micro_batch))

    def __str__(self) -> str:
        return f"{self.stage},{self.passes},{self.losses},{self.variant},{self.micro_batch}"

    @property
    def truth(self) -> tuple[str, str]:
        """What decides the numbers, which are to be the same for everything else."""
        return self.losses, self.variant if self.variant == "draws" else "plain"


def run_config(
    losses: str, variant: str = "plain", stage: int = 1, micro_batch: int | None = None
) -> RunConfig:
    """A network of some fifty thousand weights, with settings that a run would have."""
    tree: dict[str, Any] = {
        "name": "test",
        "run_dir": "unused",
        "seed": SEED,
        "model": {
            "image_size": IMAGE,
            "patch_size": PATCH,
            "vision_width": 32,
            "vision_heads": 2,
            "vision_layers": 3,
            "first_stage_layers": 2,
            "centers": 4,
            "center_init_std": 1.0,
            "linear_init_std": 0.1,
            "embed_dim": 32,
            "text_width": 32,
            "text_heads": 2,
            "text_layers": 1,
            "context_length": WORDS,
            "vocab_size": VOCABULARY,
            "decoder_depth": 1,
            "decoder_heads": 2,
            "text_reconstruction": True,
            "text_decoder_depth": 1,
            "text_decoder_heads": 2,
        },
        "data": {"shards": "unused", "image_size": IMAGE, "words": WORDS},
        "loss": dict(LOSSES[losses]),
        "train": {
            "steps": STEPS,
            "global_batch": GLOBAL_BATCH,
            "precision": "fp32",
            "micro_batch": micro_batch,
        },
        # Where a gradient is nothing but rounding (biases of attention keys), Adam would divide rounding by rounding.
        "optimizer": {"lr": 1e-3, "eps": 1e-4},
        "zero": {"stage": stage},
    }
    for name, value in VARIANTS[variant].items():
        section, key = name.split(".")
        tree[section][key] = value
    return RunConfig.model_validate(tree)


def batch_of(step: int, begin: int = 0, end: int = GLOBAL_BATCH) -> Batch:
    """Samples ``begin`` to ``end`` of a step's batch. Texts have 3 to 16 words: those to predict differ in number."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randint(0, 256, (GLOBAL_BATCH, 3, IMAGE, IMAGE), generator=generator, dtype=torch.uint8)
    # Coarse pictures: noise alone would look the same everywhere to a network that has learned nothing.
    coarse = torch.randint(0, 256, (GLOBAL_BATCH, 3, 2, 2), generator=generator, dtype=torch.uint8)
    images = images // 4 + coarse.repeat_interleave(IMAGE // 2, 2).repeat_interleave(IMAGE // 2, 3) // 4 * 3
    captions = torch.randint(1, VOCABULARY - 1, (GLOBAL_BATCH, WORDS), generator=generator)
    # The samples are ordered by length, so that ranks and micro-batches differ as much as they can.
    lengths = torch.randint(3, WORDS + 1, (GLOBAL_BATCH,), generator=generator).sort().values
    places = torch.arange(WORDS)
    tokens = captions.masked_fill(places >= lengths[:, None], 0)
    tokens[torch.arange(GLOBAL_BATCH), lengths - 1] = VOCABULARY - 1
    # Every fourth sample has the text of its neighbour, which is then no negative of it.
    tokens[1::4] = tokens[0::4]
    superpixels = torch.randint(0, 5, (GLOBAL_BATCH, (IMAGE // PATCH) ** 2), generator=generator)
    own = slice(begin, end)
    return Batch(
        images=images[own],
        tokens=tokens[own],
        caption_tokens=tokens[own].clone(),
        superpixels=superpixels[own],
        captions=[""] * (end - begin),
        positions=torch.arange(begin, end) + step * GLOBAL_BATCH,
    )


def plain_training(config: RunConfig) -> dict[str, Any]:
    """Losses and gradients of the first step, and parameters after the last, of one pass over the whole batch."""
    torch.manual_seed(config.seed)
    model = SegCLIP(config.model).train()
    optimizer = build_optimizer(model, config.optimizer)
    found: dict[str, Any] = {"losses": []}
    for step in range(STEPS):
        batch = batch_of(step)
        output = model(
            batch.images,
            batch.tokens,
            batch.superpixels,
            KeyedNoise(config.seed, batch.positions),
            with_superpixel=config.loss.superpixel_kl > 0,
            with_reconstruction=config.loss.reconstruction > 0,
            with_text_reconstruction=config.loss.text_reconstruction > 0,
        )
        exclude = (
            false_negatives(batch.caption_tokens, batch.tokens) if config.loss.skip_false_negatives else None
        )
        losses = {
            "contrastive": contrastive_loss_reference(
                output.image_embed_BE, output.text_embed_BE, output.logit_scale, exclude_BN=exclude
            ),
            "superpixel_kl": output.loss_superpixel,
            "reconstruction": output.loss_reconstruction,
            "text_reconstruction": output.loss_text_reconstruction,
        }
        total = sum(getattr(config.loss, name) * value for name, value in losses.items())
        total.backward()
        found["losses"].append(
            {name: float(value.detach()) for name, value in losses.items()}
            | {
                "total": float(total.detach()),
                "logit_scale": float(output.logit_scale.detach()),
                "used_centers": float(output.hard_BGL.detach().amax(dim=2).mean()),
            }
        )
        for parameter in model.parameters():
            # DeepSpeed's optimisers know no parameter without gradient.
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if step == 0:
            found["gradients"] = {name: p.grad.clone() for name, p in trained(model)}
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.train.gradient_clip)
        optimizer.step()
        optimizer.zero_grad()
    found["parameters"] = {name: parameter.detach().clone() for name, parameter in trained(model)}
    return found


def trained(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Parameters that learn."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def train_case(case: Case, ranks: Any) -> dict[str, Any]:
    """The same as ``plain_training`` by the trainer's engine and step."""
    from segclip.trainer.engine import build_engine, compile_network, gradient_norm, set_learning_rates
    from segclip.trainer.step import compute_gradients

    local_batch = GLOBAL_BATCH // ranks.world_size
    micro_batch = case.micro_batch or local_batch // case.passes
    config = run_config(case.losses, case.variant, case.stage)
    engine = build_engine(config, ranks)
    if case.variant == "compiled":
        compile_network(engine.module, "blocks")
    if case.variant == "captured":
        # The whole tower as one graph, run as it was captured: for that much code the compiler takes minutes.
        engine.module.vision.compile(backend="aot_eager")
    rows: list[dict[str, Tensor]] = []
    found: dict[str, Any] = {}
    for step in range(STEPS):
        set_learning_rates(engine, 1.0)
        batch = batch_of(step, ranks.rank * local_batch, (ranks.rank + 1) * local_batch)
        computed = compute_gradients(engine, batch, config.seed, config.loss, micro_batch)
        rows.append(
            {**computed.losses, "logit_scale": computed.logit_scale, "used_centers": computed.centers.used}
        )
        if step == 0:
            found["gradients"] = {name: whole_gradient(p) for name, p in trained(engine.module)}
        gradient_norm(engine, engine.step)
    found["losses"] = [means_over_ranks(row) for row in rows]
    found["parameters"] = {name: whole_parameter(p) for name, p in trained(engine.module)}
    engine.destroy()
    return found


def means_over_ranks(row: dict[str, Tensor]) -> dict[str, float]:
    """As the training loop reports them."""
    import torch.distributed as dist

    values = torch.stack([value.double() for value in row.values()])
    dist.all_reduce(values)
    return dict(zip(row, (values / dist.get_world_size()).tolist(), strict=True))


def whole_gradient(parameter: torch.nn.Parameter) -> Tensor:
    """Put together from all ranks, before clipping; the same call on all of them."""
    from deepspeed.utils import safe_get_full_grad

    gradient = safe_get_full_grad(parameter)
    shape = getattr(parameter, "ds_shape", parameter.shape)
    return torch.zeros(shape) if gradient is None else gradient.detach().float().reshape(shape).clone()


def whole_parameter(parameter: torch.nn.Parameter) -> Tensor:
    """Put together from all ranks, in float32 where the optimiser keeps that."""
    from deepspeed.utils import safe_get_full_fp32_param

    value = safe_get_full_fp32_param(parameter)
    return (parameter if value is None else value).detach().float().clone()


def main() -> None:
    """Train every case."""
    from segclip.trainer.distributed import start

    arguments = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
    ranks = start()
    torch.set_num_threads(1)
    found = {}
    for name in arguments[1:]:
        found[name] = train_case(Case.parse(name), ranks)
    if ranks.is_first:
        torch.save(found, arguments[0])


if __name__ == "__main__":
    main()
