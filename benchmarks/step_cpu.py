"""One training step of ViT-B/16 on the CPU: float32 beside bfloat16, and both beside the machine's matrix products.

    python -m benchmarks.step_cpu --batches 4 8
    python -m benchmarks.step_cpu --network quickstart --batches 8 --repeats 1   # seconds, to see that it works

224 pixels, 32 words, all losses, forward and backward. Each case runs in a process of its own; its peak memory is the
largest that was resident during the steps. Matrix products are timed before and after every step, so that a ratio
compares numbers taken within the same seconds. Rates count the step's arithmetic as three times that of its forward
pass.

Whether the processor has instructions for bfloat16 products is printed. Without them bfloat16 is emulated, so slowly
that a step may take an hour; its figures say nothing of processors that have them. A case whose step is expected to
take longer than --longest, going by a matrix product, is not run, and the table says so.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Mapping
from typing import Any

from benchmarks.own_process import peak_resident_mib, resident_mib_from_here, run_alone
from benchmarks.report import Figure, arguments, print_figures, write_report

SPEEDUP, MEMORY, SHARE = 3.0, 0.7, 0.85
WORDS = 32
SIDE = 1536
DTYPES = ("float32", "bfloat16")
# Instructions that multiply bfloat16 matrices: AVX512-BF16 and AMX (x86), BF16 (ARM).
BFLOAT16_UNITS = ("avx512_bf16", "amx_bf16", "bf16")


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = arguments(__doc__)
    parser.add_argument("--batches", type=int, nargs="+", help="batch sizes (default: 4 8; quick: 1)")
    parser.add_argument(
        "--repeats", type=int, help="steps timed a case, after one that is not (default: 3; quick: 1)"
    )
    parser.add_argument(
        "--dtypes", nargs="+", choices=DTYPES, default=DTYPES, help="types to measure (default: both)"
    )
    parser.add_argument(
        "--network",
        choices=["vit_b16", "quickstart"],
        default="vit_b16",
        help="quickstart: a tiny network, to see that the benchmark works; its figures have no targets",
    )
    parser.add_argument(
        "--longest",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="leave out cases whose step is expected to take longer (default: 300)",
    )
    parser.add_argument("--case", nargs=2, metavar=("TYPE", "BATCH"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    repeats = given.repeats if given.repeats is not None else (1 if given.quick else 3)
    batches = given.batches or ([1] if given.quick else [4, 8])
    if min(repeats, *batches) < 1:
        parser.error(f"--batches and --repeats must be at least 1, got {batches} and {repeats}")
    if given.case:
        print(json.dumps(measure(given.network, given.case[0], int(given.case[1]), repeats, given.longest)))
        return
    missing = missing_units()
    if missing:
        print(missing, flush=True)
    figures: dict[str, Figure] = {}
    for batch in batches:
        found = {}
        for dtype in given.dtypes:
            print(f"batch {batch}, {dtype} ...", flush=True)
            found[dtype] = run(given.network, dtype, batch, repeats, given.longest)
        figures |= compare(found, batch, bool(missing), targets=given.network == "vit_b16")
    print_figures(f"Training step of {given.network} on the CPU, forward and backward", figures)
    write_report(given.json, figures)


def missing_units() -> str:
    """A sentence on what this processor lacks for bfloat16; empty if it lacks nothing."""
    import torch

    capabilities = torch.cpu.get_capabilities()
    if any(capabilities.get(name) for name in BFLOAT16_UNITS):
        return ""
    wide = (
        "" if capabilities.get("avx512_f", capabilities.get("architecture") != "x86_64") else ", nor AVX-512"
    )
    return (
        f"this CPU ({capabilities.get('cpu_name', 'unknown')}) has no instructions for bfloat16 products "
        f"(AVX512-BF16, AMX, ARM BF16){wide}: they are emulated in float32, and bfloat16 cannot be faster here"
    )


def compare(
    found: Mapping[str, Mapping[str, Any]], batch: int, missing: bool, targets: bool = True
) -> dict[str, Figure]:
    """Figures of one batch size.

    Args:
        found: what ``measure`` returned, by type.
        missing: whether the processor lacks instructions for bfloat16.
        targets: whether the figures are held against what ViT-B/16 must reach.
    """
    figures: dict[str, Figure] = {}
    note = "; bfloat16 is emulated on this CPU" if missing else ""

    for dtype, case in found.items():
        name = f"batch {batch}, {dtype}"
        if "expected_seconds" in case:
            figures[f"{name} matrix product"] = Figure(
                case["matmul_gflops"],
                "GFLOP/s",
                beside=f"not run: a step would take some {case['expected_seconds'] / 60:.0f} min (see --longest); "
                f"speed and memory were not measured{note}",
            )
            continue
        figures[name] = Figure(batch / case["seconds"], "samples/s", beside=f"{case['seconds']:.2f} s a step")
        figures[f"{name} arithmetic"] = Figure(
            case["gflops"], "GFLOP/s", beside=f"{dtype} matrix product {case['matmul_gflops']:.0f} GFLOP/s"
        )
        if dtype == "float32":
            figures[f"batch {batch}, float32 step / matrix product"] = Figure.at_least(
                case["share"],
                "",
                SHARE if targets else None,
                f"median over {case['repeats']} steps, each beside its own",
            )
        figures[f"{name} peak memory"] = Figure(
            case["peak_gib"], "GiB", beside=f"{case['before_gib']:.2f} GiB before the first step"
        )
    if set(found) == set(DTYPES) and all("seconds" in case for case in found.values()):
        whole, half = found["float32"], found["bfloat16"]
        speedup, memory = whole["seconds"] / half["seconds"], half["peak_gib"] / whole["peak_gib"]
        figures[f"batch {batch}, bfloat16 speed / float32"] = Figure.at_least(
            speedup,
            "",
            SPEEDUP if targets else None,
            f"float32 {whole['seconds']:.2f} s, bfloat16 {half['seconds']:.2f} s{note}",
        )
        figures[f"batch {batch}, bfloat16 peak memory / float32"] = Figure.at_most(
            memory,
            "",
            MEMORY if targets else None,
            f"float32 {whole['peak_gib']:.2f} GiB, bfloat16 {half['peak_gib']:.2f} GiB",
        )
    return figures


def run(network: str, dtype: str, batch: int, repeats: int, longest: float) -> dict[str, Any]:
    """``measure`` in a process of its own."""
    words = ("--network", network, "--repeats", repeats, "--longest", longest, "--case", dtype, batch)
    return run_alone("step_cpu", *words)


def measure(network: str, dtype_name: str, batch: int, repeats: int, longest: float) -> dict[str, Any]:
    """Time ``repeats`` steps, each between matrix products of the same type.

    Returns:
        The figures; or, of a step that is expected to take more than ``longest`` seconds, that expectation and the rate
        it rests on.
    """
    import torch

    from segclip.heap import keep_freed_memory
    from segclip.models.flops import training_flops
    from segclip.models.noise import KeyedNoise
    from segclip.models.sizes import segclip_quickstart, segclip_vit_b16

    keep_freed_memory()  # as the trainer does
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    dtype = getattr(torch, dtype_name)
    model = (segclip_quickstart if network == "quickstart" else segclip_vit_b16)().to(dtype).train()
    config = model.config
    words = min(WORDS, config.context_length)
    images = torch.randint(0, 256, (batch, 3, config.image_size, config.image_size), dtype=torch.uint8)
    tokens = torch.randint(1, config.vocab_size - 1, (batch, words))
    tokens[:, -1] = config.vocab_size - 1
    superpixels = torch.randint(0, 64, (batch, config.patches))
    work = training_flops(config, words) * batch

    seconds, shares, products = [], [], [matmul_rate(dtype)]
    expected = work / products[0]
    if expected > longest:
        return {"expected_seconds": expected, "matmul_gflops": products[0] / 1e9}
    before = resident_mib_from_here()
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
    return {
        "seconds": middle,
        "gflops": work / middle / 1e9,
        "matmul_gflops": statistics.median(products[1:]) / 1e9,
        "share": statistics.median(shares),
        "repeats": repeats,
        "before_gib": before / 2**10,
        "peak_gib": peak_resident_mib() / 2**10,
    }


def step(model: Any, images: Any, tokens: Any, superpixels: Any, noise: Any) -> None:
    """All losses, forward and backward."""
    from segclip.kernels.contrastive import contrastive_loss

    out = model(images, tokens, superpixels, noise)
    loss = contrastive_loss(out.image_embed_BE, out.text_embed_BE, out.logit_scale)
    (loss + out.loss_superpixel + out.loss_reconstruction).backward()


def matmul_rate(dtype: Any, seconds: float = 0.5) -> float:
    """Operations a second of a matrix product."""
    import torch

    # Emulated bfloat16 would take half a minute for a large product: then a small one has to do.
    side = SIDE if _product(torch.randn(2, 256, 256).to(dtype), 2) > 1e10 else 256
    return _product(torch.randn(2, side, side).to(dtype), None, seconds)


def _product(pair: Any, times: int | None, seconds: float = 0.0) -> float:
    """Operations a second of ``pair[0] @ pair[1]``, taken so many times, or until the seconds are over."""
    pair[0] @ pair[1]
    begin, count, taken = time.perf_counter(), 0, 0.0
    while count < times if times is not None else taken < seconds:
        pair[0] @ pair[1]
        count += 1
        taken = time.perf_counter() - begin
    return 2 * int(pair.shape[-1]) ** 3 * count / taken


if __name__ == "__main__":
    main()
