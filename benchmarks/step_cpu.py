"""One training step of ViT-B/16 on the CPU: float32 beside bfloat16, and both beside the machine's matrix products.

    python -m benchmarks.step_cpu --batches 4 8

224 pixels, 32 words, all losses, forward and backward. Each case runs in a process of its own, whose largest resident
memory is its peak. Matrix products are timed before and after every step, so that a ratio compares numbers taken
within the same seconds. Rates count the step's arithmetic as three times that of its forward pass.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

from benchmarks.report import ROOT, Figure, arguments, peak_resident_mib, print_figures, write_report

SPEEDUP, MEMORY, SHARE = 3.0, 0.7, 0.85
WORDS = 32
SIDE = 1536


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = arguments(__doc__)
    parser.add_argument("--batches", type=int, nargs="+", help="batch sizes (default: 4 8; quick: 1)")
    parser.add_argument(
        "--repeats", type=int, help="steps timed a case, after one that is not (default: 3; quick: 1)"
    )
    parser.add_argument("--case", nargs=2, metavar=("TYPE", "BATCH"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    repeats = given.repeats or (1 if given.quick else 3)
    if given.case:
        print(json.dumps(measure(given.case[0], int(given.case[1]), repeats)))
        return
    figures: dict[str, Figure] = {}
    for batch in given.batches or ([1] if given.quick else [4, 8]):
        figures |= compare(run("float32", batch, repeats), run("bfloat16", batch, repeats), batch)
    print_figures("Training step of ViT-B/16 on the CPU, forward and backward", figures)
    write_report(given.json, figures)


def compare(whole: dict[str, Any], half: dict[str, Any], batch: int) -> dict[str, Figure]:
    """Figures of one batch size."""
    speedup = whole["seconds"] / half["seconds"]
    memory = half["peak_gib"] / whole["peak_gib"]
    note = ""
    if not half["multiplies_bfloat16"]:
        note = "; this CPU has no instructions for bfloat16 products (AVX512-BF16, AMX): they are emulated"
    return {
        f"batch {batch}, float32": Figure(
            batch / whole["seconds"], "samples/s", beside=f"{whole['seconds']:.2f} s a step"
        ),
        f"batch {batch}, float32 arithmetic": Figure(
            whole["gflops"], "GFLOP/s", beside=f"matrix product {whole['matmul_gflops']:.0f} GFLOP/s"
        ),
        f"batch {batch}, float32 step / matrix product": Figure(
            whole["share"],
            "",
            SHARE,
            whole["share"] >= SHARE,
            f"median over {whole['repeats']} steps, each beside its own",
        ),
        f"batch {batch}, float32 peak memory": Figure(whole["peak_gib"], "GiB"),
        f"batch {batch}, bfloat16": Figure(
            batch / half["seconds"], "samples/s", beside=f"{half['seconds']:.2f} s a step"
        ),
        f"batch {batch}, bfloat16 arithmetic": Figure(
            half["gflops"], "GFLOP/s", beside=f"bfloat16 matrix product {half['matmul_gflops']:.0f} GFLOP/s"
        ),
        f"batch {batch}, bfloat16 peak memory": Figure(half["peak_gib"], "GiB"),
        f"batch {batch}, bfloat16 speed / float32": Figure(
            speedup, "", SPEEDUP, speedup >= SPEEDUP, f"float32 {whole['seconds']:.2f} s{note}"
        ),
        f"batch {batch}, bfloat16 peak memory / float32": Figure(
            memory, "", MEMORY, memory <= MEMORY, f"float32 {whole['peak_gib']:.2f} GiB"
        ),
    }


def run(dtype: str, batch: int, repeats: int) -> dict[str, Any]:
    """``measure`` in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.step_cpu",
        "--repeats",
        str(repeats),
        "--case",
        dtype,
        str(batch),
    ]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(dtype_name: str, batch: int, repeats: int) -> dict[str, Any]:
    """Time ``repeats`` steps, each between matrix products of the same type."""
    import torch

    from segclip.models import KeyedNoise, segclip_vit_b16

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    dtype = getattr(torch, dtype_name)
    model = segclip_vit_b16().to(dtype).train()
    images = torch.randint(0, 256, (batch, 3, 224, 224), dtype=torch.uint8)
    tokens = torch.randint(1, 49407, (batch, WORDS))
    tokens[:, -1] = 49407
    superpixels = torch.randint(0, 64, (batch, 196))
    work = 3 * forward_flops() * batch

    seconds, shares, products = [], [], [matmul_rate(dtype)]
    for number in range(repeats + 1):
        noise = KeyedNoise(0, torch.arange(batch) + number * batch)
        begin = time.perf_counter()
        step(model, images, tokens, superpixels, noise)
        taken = time.perf_counter() - begin
        model.zero_grad(set_to_none=True)
        products.append(matmul_rate(dtype))
        if number:  # the first one warms up
            seconds.append(taken)
            shares.append(work / taken / statistics.mean(products[-2:]))
    middle = statistics.median(seconds)
    capabilities = torch.cpu.get_capabilities()
    return {
        "seconds": middle,
        "gflops": work / middle / 1e9,
        "matmul_gflops": statistics.median(products[1:]) / 1e9,
        "share": statistics.median(shares),
        "repeats": repeats,
        "peak_gib": peak_resident_mib() / 2**10,
        "multiplies_bfloat16": any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")),
    }


def step(model: Any, images: Any, tokens: Any, superpixels: Any, noise: Any) -> None:
    """All losses, forward and backward."""
    from segclip.kernels.contrastive import contrastive_loss

    out = model(images, tokens, superpixels, noise)
    loss = contrastive_loss(out.image_embed_BE, out.text_embed_BE, out.logit_scale)
    (loss + out.loss_superpixel + out.loss_reconstruction).backward()


def forward_flops() -> float:
    """Arithmetic of one sample's forward pass: both passes of the vision tower, text, decoder.

    Counted by ``torch.utils.flop_counter``, on tensors that hold no memory.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from segclip.models import InjectedNoise, ModelConfig, SegCLIP

    with torch.device("meta"):
        config = ModelConfig()
        model = SegCLIP(config).train()
        noise = InjectedNoise(
            torch.empty(1, config.centers, config.patches),
            torch.empty(1, config.centers, config.visible_patches(config.patches)),
            torch.empty(1, config.patches),
        )
        images = torch.empty(1, 3, 224, 224)
        tokens = torch.empty(1, WORDS, dtype=torch.int64)
        superpixels = torch.empty(1, config.patches, dtype=torch.int64)
    model._look_at_content = lambda tensor: False  # type: ignore[method-assign]  # there is none on this device
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(images, tokens, superpixels, noise)
    return float(counter.get_total_flops())


def matmul_rate(dtype: Any, seconds: float = 0.5) -> float:
    """Operations a second of a matrix product."""
    import torch

    a, b = torch.randn(2, SIDE, SIDE).to(dtype)
    a @ b
    begin, count = time.perf_counter(), 0
    while (taken := time.perf_counter() - begin) < seconds:
        a @ b
        count += 1
    return 2 * SIDE**3 * count / taken


if __name__ == "__main__":
    main()
