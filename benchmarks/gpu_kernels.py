"""The Triton kernels on a GPU, beside plain torch run eagerly and compiled: ``make bench-gpu``.

    python -m benchmarks.gpu_kernels --json benchmarks/results/gpu_kernels.json

Each operation of ``benchmarks.kernel_cases`` runs forward, and forward and backward, in bfloat16, at the batch sizes
given there. Times are medians of many runs with a cold L2 cache; memory is what a pass takes beyond its inputs. Nothing
is timed unless outputs and gradients agree with plain torch, except where plain torch does not fit on the card. Rates
stand beside what the card reaches in this run when it copies, and when it multiplies matrices. The share of the copy
rate counts the bytes that have to move: 1 / share bounds from above how many times more were moved.

``benchmarks.gpu_bytes`` counts those.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.kernel_cases import MAKERS, Case, forward_backward
from benchmarks.report import Figure, arguments, leave_out, print_figures, write_report

MORE_BYTES = 1.3
"""Times the least number of bytes that a kernel may move."""
AGREEMENT = 5e-2
"""Largest relative error, in the Euclidean norm, of any output or gradient in bfloat16: a patch between two centers may
go to either."""


@dataclass(frozen=True)
class Ceilings:
    """What the card reaches in this run."""

    copy: float
    """Bytes a second, read plus written."""
    matmul: float
    """Floating-point operations a second of a bfloat16 matrix product."""


@dataclass(frozen=True)
class Timing:
    """One implementation of one case."""

    forward: float
    """Seconds."""
    both: float
    """Seconds of forward and backward."""
    memory: float
    """Bytes beyond the inputs at the peak of forward and backward."""


def main() -> None:
    """Measure, print the tables, write the JSON."""
    parser = arguments(__doc__, default_json=None)
    parser.add_argument("--only", metavar="TEXT", default="", help="cases whose names have this in them")
    parser.add_argument(
        "--batches", type=int, nargs="+", help="instead of those of the cases; quick: the smallest"
    )
    given = parser.parse_args()
    if not torch.cuda.is_available():
        leave_out("there is no GPU", given.json)
    # A first run tunes; with this set, how the choice fell is printed.
    os.environ.setdefault("TRITON_PRINT_AUTOTUNING", "1")
    ceilings = measure_ceilings()
    figures = {
        "copy": Figure(ceilings.copy / 1e12, "TB/s", beside="read and written, 1 GiB"),
        "matrix product": Figure(ceilings.matmul / 1e12, "TFLOP/s", beside="bfloat16, 8192 cubed"),
    }
    print_figures("Ceilings", figures)
    for maker, batches in MAKERS.items():
        for batch in given.batches or (batches[:1] if given.quick else batches):
            for case in maker(batch, "cuda", torch.bfloat16):
                if given.only in case.name:
                    own = measure(case, ceilings, given.quick)
                    print_figures(case.name, own)
                    figures |= own
            torch.cuda.empty_cache()
    write_report(given.json, figures)


def measure(case: Case, ceilings: Ceilings, quick: bool) -> dict[str, Figure]:
    """Figures of one case."""
    # Sizes are compiled one by one, as constants, whatever was compiled before.
    torch._dynamo.reset()
    functions: dict[str, Callable[..., Any]] = {
        "kernel": case.kernel,
        "eager": case.reference,
        "compiled": torch.compile(case.reference, dynamic=False),
    }
    figures: dict[str, Figure] = {}
    try:
        check(case)
    except torch.OutOfMemoryError:
        unchecked = "plain torch does not fit on this card: not compared at this size"
        figures[f"{case.name}: compared with plain torch"] = Figure(0, "", beside=unchecked)
    timings = {"kernel": time(case, case.kernel, quick)}
    for name in ("eager", "compiled"):
        torch.cuda.empty_cache()
        try:
            timings[name] = time(case, functions[name], quick)
        except torch.OutOfMemoryError:
            room = torch.cuda.mem_get_info()[1] / 2**20
            figures[f"{case.name}: {name}, memory"] = Figure(
                room, "MiB", beside="it needs more and did not run"
            )
    own = timings["kernel"]
    for name, found in timings.items():
        figures[f"{case.name}: {name}, forward"] = Figure(found.forward * 1e6, "us")
        figures[f"{case.name}: {name}, both"] = Figure(found.both * 1e6, "us", beside="forward and backward")
        most = case.most_bytes if name == "kernel" else 0
        figures[f"{case.name}: {name}, memory"] = Figure.at_most(
            found.memory / 2**20, "MiB", most / 2**20 if most else None, "beyond the inputs"
        )
    for name, target in (("eager", case.times_eager), ("compiled", 1.0)):
        if name in timings:
            ratio = timings[name].both / own.both
            figures[f"{case.name}: times faster than {name}"] = Figure.at_least(
                ratio, "", target, "forward and backward"
            )
    if case.least_bytes:
        rate = case.least_bytes / own.both
        figures[f"{case.name}: share of the copy rate"] = Figure(
            rate / ceilings.copy,
            "",
            1 / MORE_BYTES,
            # A rate below the target does not prove that more was moved: launches and latencies also take time.
            True if rate / ceilings.copy >= 1 / MORE_BYTES else None,
            f"{case.least_bytes / 1e6:.1f} MB at least, {rate / 1e12:.2f} TB/s",
        )
    if case.operations:
        rate = case.operations / own.both
        figures[f"{case.name}: share of the matrix rate"] = Figure(
            rate / ceilings.matmul, "", beside=f"{rate / 1e12:.0f} TFLOP/s"
        )
    return figures


def check(case: Case) -> None:
    """Refuse to time a kernel whose numbers are wrong.

    Raises:
        RuntimeError: an output or a gradient is further from plain torch than rounding explains.
    """
    found = forward_backward(case, case.kernel)()
    expected = forward_backward(case, case.reference)()
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        one, other = one.detach().double(), other.detach().double()
        size = float(other.norm())
        error = float((one - other).norm()) / (size if size > 0 else 1.0)
        if not error <= AGREEMENT:
            raise RuntimeError(
                f"{case.name}: output or gradient {number} is {error:.1e} away from plain torch, "
                f"more than {AGREEMENT}: nothing is timed before that is put right"
            )


def time(case: Case, function: Callable[..., Any], quick: bool) -> Timing:
    """Medians over about a second, or a tenth of it, each."""
    from triton.testing import do_bench

    both = forward_backward(case, function)

    def forward() -> None:
        with torch.no_grad():
            function(*case.inputs)

    forward()
    both()  # tunes and compiles
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    both()
    torch.cuda.synchronize()
    memory = torch.cuda.max_memory_allocated() - before
    milliseconds = {"warmup": 20, "rep": 100} if quick else {"warmup": 100, "rep": 1000}
    only_forward, forward_and_backward = (
        do_bench(call, quantiles=[0.5], **milliseconds) / 1e3 for call in (forward, both)
    )
    return Timing(only_forward, forward_and_backward, float(memory))


def measure_ceilings() -> Ceilings:
    """Copy and matrix-product rates of this card."""
    from triton.testing import do_bench

    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy = do_bench(lambda: target.copy_(source), quantiles=[0.5]) / 1e3
    side = 8192
    a, b = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    matmul = do_bench(lambda: a @ b, quantiles=[0.5]) / 1e3
    return Ceilings(2 * source.numel() / copy, 2 * side**3 / matmul)


if __name__ == "__main__":
    main()
