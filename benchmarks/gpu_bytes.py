"""Bytes that the operations move between a GPU and its memory, as the card counts them, by NVIDIA's Nsight Compute.

    python -m benchmarks.gpu_bytes --json benchmarks/results/gpu_bytes.json

Each case of ``benchmarks.kernel_cases`` that memory bounds runs once, forward and backward, in bfloat16, at its largest
batch, in a process of its own under ``ncu``. What its kernels read and wrote is added up and compared with what has to
be moved if nothing is touched twice. Bytes that are still in the L2 cache when a kernel ends are not counted: for a
case that fits in there (``superpixel_kl``) the figure is a lower bound.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import subprocess
import sys
from collections.abc import Iterator

import torch

from benchmarks.gpu_kernels import MORE_BYTES
from benchmarks.kernel_cases import MAKERS, Case, forward_backward
from benchmarks.report import ROOT, Figure, arguments, leave_out, print_figures, write_report

METRIC = "dram__bytes.sum"


def main() -> None:
    """Count, print the table, write the JSON."""
    parser = arguments(__doc__)
    parser.add_argument("--only", metavar="TEXT", default="", help="cases whose names have this in them")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        leave_out("there is no GPU", given.json)
    if given.case:
        run_once(given.case)
        return
    ncu = shutil.which("ncu")
    if ncu is None:
        leave_out("ncu, NVIDIA's Nsight Compute, is not on the PATH", given.json)
    least = {case.name: case.least_bytes for case in cases(given.quick) if given.only in case.name}
    torch.cuda.empty_cache()
    figures = {}
    for name, bytes_needed in least.items():
        ratio = moved(ncu, name) / bytes_needed
        figures[name] = Figure.at_most(
            ratio,
            "times the least",
            MORE_BYTES,
            f"{bytes_needed / 1e6:.1f} MB at least, forward and backward",
        )
    print_figures("Bytes moved", figures)
    write_report(given.json, figures)


def cases(quick: bool = False) -> Iterator[Case]:
    """Those that memory bounds; quick: at the smallest batch."""
    for maker, batches in MAKERS.items():
        # One sample tells whether an operation is bound by memory, before gigabytes are made for it.
        if all(case.least_bytes for case in maker(1, "cuda", torch.bfloat16)):
            yield from maker(min(batches) if quick else max(batches), "cuda", torch.bfloat16)


def run_once(name: str) -> None:
    """One forward and backward pass for the profiler to see, after one that compiles and tunes."""
    for quick in (False, True):
        for case in cases(quick):
            if case.name == name:
                both = forward_backward(case, case.kernel)
                both()
                torch.cuda.synchronize()
                torch.cuda.profiler.start()
                both()
                torch.cuda.synchronize()
                torch.cuda.profiler.stop()
                return
    raise ValueError(f"no case is called {name!r}")


def moved(ncu: str, name: str) -> float:
    """Bytes read and written by all kernels of one pass."""
    command = [ncu, "--profile-from-start", "off", "--metrics", METRIC]
    command += ["--csv", "--page", "raw", "--print-units", "base"]
    command += [sys.executable, "-m", "benchmarks.gpu_bytes", "--case", name]
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        print(done.stdout[-8000:])
        raise RuntimeError(f"ncu failed for {name}: exit code {done.returncode}")
    return total(done.stdout)


def total(output: str) -> float:
    """Sum of the metric over all kernels of ncu's raw page: lines of its own, a header, units, a line a kernel.

    Raises:
        RuntimeError: no kernel was seen, or the unit is another.
    """
    rows = list(csv.DictReader(line for line in output.splitlines() if line.startswith('"')))
    if len(rows) < 2 or METRIC not in rows[0]:
        raise RuntimeError(f"ncu saw no kernel; it said:\n{output[-4000:]}")
    units, *kernels = rows
    if units[METRIC] != "byte":
        raise RuntimeError(f"{METRIC} has to be in bytes, got {units[METRIC]!r}")
    return sum(float(kernel[METRIC].replace(",", "")) for kernel in kernels)


if __name__ == "__main__":
    main()
