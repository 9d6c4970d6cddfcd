"""Whole training steps on a GPU, beside plain loops of the same network: part of ``make bench-gpu``.

    python -m benchmarks.gpu_training --json benchmarks/results/gpu_training.json
    python -m benchmarks.gpu_training --network quickstart --batches 8     # on a CPU too, to see that it works

ViT-B/16, 224 pixels, 32 words, all losses, forward, backward and optimiser step, random images that lie on the host.

- ``plain tf32``, ``plain autocast``: a loop one would write, the network in float32 eagerly, without our kernels,
  matrix products in TensorFloat-32 or under bfloat16 autocast, torch's fused AdamW;
- ``eager``, ``kernels``, ``kernels + blocks``, ``kernels + towers``: the trainer's engine and step (bfloat16, ZeRO
  stage 1), without and with the Triton kernels, blocks or towers compiled;
- the largest batch in one pass (a multiple of 32), and a global batch of 32,768 in passes of 512 with cached features.

Each case runs in a process of its own, so that none suffers from what another left behind. MFU is that of
``segclip.trainer.utilisation``: its peak is the vendor's figure for dense bfloat16 products.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from benchmarks.report import ROOT, Figure, arguments, leave_out, print_figures, write_report

WORDS = 32
OURS: dict[str, dict[str, str]] = {
    "eager": {"kernels": "torch", "compile": "none"},
    "kernels": {"kernels": "auto", "compile": "none"},
    "kernels + blocks": {"kernels": "auto", "compile": "blocks"},
    "kernels + towers": {"kernels": "auto", "compile": "towers"},
}
PLAIN = ("plain tf32", "plain autocast")
LARGE, LARGE_PASS = 32_768, 512
OWED, AIM, OVER_TF32 = 0.25, 0.35, 3.0


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = arguments(__doc__)
    parser.add_argument(
        "--batches", type=int, nargs="+", help="samples of a step (default: 96 256 512; quick: 96)"
    )
    parser.add_argument("--steps", type=int, help="steps timed a case, after three (default: 20; quick: 5)")
    parser.add_argument(
        "--only", nargs="+", choices=[*PLAIN, *OURS, "largest", "large"], help="these cases alone"
    )
    parser.add_argument(
        "--network",
        choices=["vit_b16", "quickstart"],
        default="vit_b16",
        help="quickstart: a tiny one, on a CPU too, to see that the benchmark works; its figures have no targets",
    )
    parser.add_argument("--case", metavar="JSON", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        print(json.dumps(measure(**json.loads(given.case))))
        return

    import torch

    if not torch.cuda.is_available() and given.network != "quickstart":
        leave_out("there is no GPU", given.json)
    try:
        import deepspeed  # noqa: F401
    except ImportError:
        leave_out("deepspeed is not installed, which the trainer's step needs", given.json)
    targets = given.network == "vit_b16"
    steps = given.steps or (5 if given.quick else 20)
    figures: dict[str, Figure] = {}
    wanted = given.only or [*PLAIN, *OURS, "largest", "large"]
    for batch in given.batches or ([96] if given.quick else [96, 256, 512]):
        found = {
            name: run(given.network, name, batch, None, steps) for name in [*PLAIN, *OURS] if name in wanted
        }
        figures |= compare(found, batch, targets)
    if "largest" in wanted:
        batch = largest(given.network)
        figures["largest batch in one pass"] = Figure(batch, "samples", beside="kernels; a multiple of 32")
    if "large" in wanted:
        large, size = (LARGE, LARGE_PASS) if targets else (16, 4)
        found = {f"{large} in passes of {size}": run(given.network, "kernels", large, size, 2)}
        figures |= compare(found, large, targets=False)
    print_figures(f"Training steps of {given.network}", figures)
    write_report(given.json, figures)


def compare(found: Mapping[str, Mapping[str, Any]], batch: int, targets: bool) -> dict[str, Figure]:
    """Figures of one batch size.

    Args:
        found: what ``measure`` returned, by case.
        batch: samples of a step.
        targets: whether the figures are held against what ViT-B/16 must reach.
    """
    figures: dict[str, Figure] = {}
    for name, case in found.items():
        label = f"batch {batch}, {name}"
        if "failed" in case:
            figures[label] = Figure(0, "samples/s", beside=f"did not run: {case['failed']}")
            continue
        figures[label] = Figure(
            case["rate"], "samples/s", beside=f"{1e3 * batch / case['rate']:.1f} ms a step, {case['device']}"
        )
        if case["mfu"] is not None:
            held = OWED if targets and name in OURS else None
            figures[f"{label}: MFU"] = Figure.at_least(case["mfu"], "", held, f"aim {AIM}")
        if case["peak_gib"] is not None:
            figures[f"{label}: peak memory"] = Figure(case["peak_gib"], "GiB")
    ran = {name: case for name, case in found.items() if "failed" not in case}
    ours = {name: case for name, case in ran.items() if name in OURS}
    if ours:
        best = max(ours, key=lambda name: ours[name]["rate"])
        for name in PLAIN:
            if name in ran:
                ratio = ours[best]["rate"] / ran[name]["rate"]
                held = OVER_TF32 if targets and name == "plain tf32" else None
                figures[f"batch {batch}, times faster than {name}"] = Figure.at_least(
                    ratio, "", held, f"best of ours: {best}"
                )
    return figures


def largest(network: str) -> int:
    """The largest multiple of 32 that fits into one pass; on a CPU, where nothing says so, 32."""
    import torch

    if not torch.cuda.is_available():
        return 32
    fits, fails = 0, None
    batch = 512
    while fails is None or fails - fits > 32:
        if "failed" in run(network, "kernels", batch, None, 1):
            fails = batch
        else:
            fits = batch
        batch = 2 * fits if fails is None else (fits + fails) // 64 * 32
        if batch <= fits:
            break
    return fits


def run(network: str, name: str, batch: int, micro_batch: int | None, steps: int) -> dict[str, Any]:
    """``measure`` in a process of its own; what it died of under ``failed``."""
    case = {"network": network, "name": name, "batch": batch, "micro_batch": micro_batch, "steps": steps}
    print(f"{name}, batch {batch} ...", flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_training", "--case", json.dumps(case)],
        cwd=ROOT,
        env={**os.environ, "SEGCLIP_KERNELS": OURS.get(name, {}).get("kernels", "torch")},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "Error" in line or "error" in line]
        return {"failed": (lines or done.stderr.splitlines() or ["it died"])[-1].strip()[:200]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(network: str, name: str, batch: int, micro_batch: int | None, steps: int) -> dict[str, Any]:
    """Samples a second, MFU and peak memory of one case."""
    import torch

    from benchmarks.training_case import random_batch, run_config
    from segclip.models.flops import training_flops
    from segclip.models.sizes import segclip_quickstart, segclip_vit_b16
    from segclip.trainer.distributed import start
    from segclip.trainer.prefetch import on_device, pinned
    from segclip.trainer.utilisation import peak_flops

    ranks = start()
    with torch.device("meta"):
        model = (segclip_quickstart if network == "quickstart" else segclip_vit_b16)().config
    words = min(WORDS, model.context_length)
    config = run_config(model, batch, words=words, stage=1)
    step = _plain_step(config, ranks, name) if name in PLAIN else _own_step(config, ranks, name, micro_batch)
    provide = on_device if micro_batch is None else pinned
    source = provide((random_batch(config, batch, number * batch) for number in range(2)), ranks.device)
    batches = list(source)
    on_gpu = ranks.device.type == "cuda"
    for number in range(3 if micro_batch is None else 1):
        step(batches[number % 2])
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    for number in range(steps):
        step(batches[number % 2])
    if on_gpu:
        torch.cuda.synchronize()
    rate = steps * batch / (time.perf_counter() - begin)
    device = torch.cuda.get_device_name() if on_gpu else "cpu"
    peak = peak_flops(device)
    return {
        "rate": rate,
        "mfu": None if peak is None else rate * training_flops(model, words) / peak,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None,
        "device": device,
    }


def _own_step(config: Any, ranks: Any, name: str, micro_batch: int | None) -> Any:
    """A step by the trainer."""
    from segclip.trainer.engine import build_engine, set_learning_rates
    from segclip.trainer.step import train_step

    precision = "bf16" if ranks.device.type == "cuda" else "fp32"
    changes = {"precision": precision, "compile": OURS[name]["compile"]}
    config = config.model_copy(update={"train": config.train.model_copy(update=changes)})
    engine = build_engine(config, ranks)
    set_learning_rates(engine, 1.0)
    return lambda batch: train_step(engine, batch, 0, config.loss, micro_batch)


def _plain_step(config: Any, ranks: Any, name: str) -> Any:
    """A step as one would write it: float32 parameters, no kernels of ours, no engine."""
    import torch

    from segclip.kernels.contrastive import contrastive_loss
    from segclip.models.noise import KeyedNoise
    from segclip.models.segclip import SegCLIP

    device = ranks.device
    if name == "plain tf32":
        torch.set_float32_matmul_precision("high")
    model = SegCLIP(config.model, load_init=False).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device.type == "cuda")

    def step(batch: Any) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=name == "plain autocast"):
            out = model(batch.images, batch.tokens, batch.superpixels, KeyedNoise(0, batch.positions))
            loss = contrastive_loss(out.image_embed_BE, out.text_embed_BE, out.logit_scale)
            loss = loss + out.loss_superpixel + out.loss_reconstruction
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    main()
