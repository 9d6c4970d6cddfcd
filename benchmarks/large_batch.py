"""What a batch that does not fit into one pass costs: the cached step beside the plain step, at equal samples.

    python -m benchmarks.large_batch
    python -m benchmarks.large_batch --quick   # seconds, to see that it works

The plain step computes all samples in one pass. The cached step computes the features of every micro-batch first, and
each micro-batch once more with its backward pass (see trainer/step.py). A forward pass is a third of a step's
arithmetic, and the first pass does nothing for the reconstruction, so at most a third is added: one extra forward.
The target leaves the rest to smaller matrices and to adding up.

One process on the CPU, float32, ZeRO stage 1. The two steps take turns, each pair on the same samples, and the ratio is
the median over pairs: both of a pair saw the machine in the same seconds. With --micro-batches 1 the ratio of the plain
step to itself shows how far to trust that.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

from benchmarks.report import Figure, arguments, print_figures, write_report
from benchmarks.training_case import random_batch, run_config

if TYPE_CHECKING:
    from segclip.models.config import ModelConfig

TARGET = 1.40
WORDS = 16


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = arguments(__doc__)
    parser.add_argument("--batch", type=int, help="samples of a step (default: 64; quick: 8)")
    parser.add_argument("--micro-batches", type=int, default=4, metavar="M", help="passes of the cached step")
    parser.add_argument(
        "--pairs", type=int, help="pairs of steps timed, after one that is not (default: 15; quick: 3)"
    )
    given = parser.parse_args()
    batch = given.batch or (8 if given.quick else 64)
    pairs = given.pairs or (3 if given.quick else 15)
    if batch % given.micro_batches or min(batch, pairs, given.micro_batches) < 1:
        parser.error(
            f"--batch {batch} must be a multiple of --micro-batches {given.micro_batches}, and all above 0"
        )

    from segclip.trainer.distributed import start

    ranks = start()
    figures: dict[str, Figure] = {}
    for losses in (True, False):
        name = "all losses" if losses else "contrastive alone"
        found = measure(network(given.quick), batch, batch // given.micro_batches, losses, pairs, ranks)
        passes = f"{given.micro_batches} passes of {batch // given.micro_batches}"
        # Not for a tiny network, whose step is overhead more than arithmetic, nor for the plain step beside itself.
        held = TARGET if given.micro_batches > 1 and not given.quick else None
        figures[f"cached step / plain step, {name}"] = Figure.at_most(
            found["ratio"], "", held, f"{passes} beside one of {batch}; median of {pairs} pairs"
        )
        figures[f"plain step, {name}"] = Figure(
            batch / found["plain"], "samples/s", beside=f"one pass of {batch}"
        )
        figures[f"cached step, {name}"] = Figure(batch / found["cached"], "samples/s", beside=passes)
    print_figures("Cached step beside plain step, CPU, float32", figures)
    write_report(given.json, figures)


def network(quick: bool) -> ModelConfig:
    """Tiny if quick; otherwise a small one with the proportions of ViT-B/32 at 224 pixels, 49 patches."""
    from segclip.models.config import ModelConfig

    sizes: dict[str, Any] = {
        "image_size": 224,
        "patch_size": 32,
        "vision_width": 192,
        "vision_heads": 3,
        "vision_layers": 12,
        "first_stage_layers": 10,
        "embed_dim": 128,
        "text_width": 128,
        "text_heads": 2,
        "text_layers": 6,
    }
    if quick:
        sizes |= {
            "image_size": 48,
            "patch_size": 6,
            "vision_width": 64,
            "vision_heads": 2,
            "vision_layers": 4,
        }
        sizes |= {"first_stage_layers": 3, "text_layers": 2}
    return ModelConfig(**sizes, context_length=WORDS, vocab_size=1000)


def measure(
    model: ModelConfig, batch: int, micro_batch: int, losses: bool, pairs: int, ranks: Any
) -> dict[str, float]:
    """Median seconds of either step, and the median ratio of pairs."""
    from segclip.trainer.engine import build_engine, set_learning_rates
    from segclip.trainer.step import train_step

    config = run_config(model, batch, words=WORDS, stage=1, losses=losses)
    engine = build_engine(config, ranks)
    seconds: dict[str, list[float]] = {"plain": [], "cached": []}
    for pair in range(pairs + 1):
        samples = random_batch(config, batch, first=pair * batch)
        turns = {"plain": batch, "cached": micro_batch}
        # Whoever comes second finds warm caches: they take turns in that too.
        for name in reversed(turns) if pair % 2 else turns:
            set_learning_rates(engine, 1.0)
            begin = time.perf_counter()
            train_step(engine, samples, config.seed, config.loss, turns[name])
            seconds[name].append(time.perf_counter() - begin)
    engine.destroy()
    plain, cached = seconds["plain"][1:], seconds["cached"][1:]
    return {
        "plain": statistics.median(plain),
        "cached": statistics.median(cached),
        "ratio": statistics.median(second / first for first, second in zip(plain, cached, strict=True)),
    }


if __name__ == "__main__":
    main()
