"""What the benchmarks of training steps share: configurations without data, and random batches for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segclip.data_pipelines.samples import Batch
    from segclip.models.config import ModelConfig
    from segclip.trainer.config import RunConfig

__all__ = ["random_batch", "run_config"]


def run_config(
    model: ModelConfig, global_batch: int, *, words: int, stage: int, losses: bool = True
) -> RunConfig:
    """A run of such a network in float32; ``losses`` False leaves the contrastive loss alone."""
    from segclip.trainer.config import RunConfig

    tree: dict[str, Any] = {
        "name": "benchmark",
        "run_dir": "unused",
        "model": model,
        "data": {"shards": "unused", "image_size": model.image_size, "words": words},
        "loss": {} if losses else {"superpixel_kl": 0.0, "reconstruction": 0.0},
        "train": {"steps": 1, "global_batch": global_batch, "precision": "fp32"},
        "optimizer": {"lr": 1e-4},
        "zero": {"stage": stage, "bucket_elements": 1_000_000},
    }
    return RunConfig.model_validate(tree)


def random_batch(config: RunConfig, samples: int, first: int) -> Batch:
    """Noise for images, words and superpixels; ``first`` is the position of the first sample."""
    import torch

    from segclip.data_pipelines.samples import Batch

    model, words = config.model, config.data.words
    generator = torch.Generator().manual_seed(first)
    images = torch.randint(
        0, 256, (samples, 3, model.image_size, model.image_size), dtype=torch.uint8, generator=generator
    )
    tokens = torch.randint(1, model.vocab_size - 1, (samples, words), generator=generator)
    tokens[:, -1] = model.vocab_size - 1
    return Batch(
        images=images,
        tokens=tokens,
        caption_tokens=tokens,
        superpixels=torch.randint(0, 16, (samples, model.patches), generator=generator),
        captions=[""] * samples,
        positions=torch.arange(samples) + first,
    )
