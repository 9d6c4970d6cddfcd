"""The Triton kernels under NVIDIA's compute-sanitizer: memory errors, races, barriers, uninitialised reads.

    python -m benchmarks.gpu_sanitize --json benchmarks/results/gpu_sanitize.json

Each tool runs a process of its own, in which every operation of ``benchmarks.kernel_cases`` goes forward and backward
in float32 and bfloat16 on a small batch. Exit code 1 if a tool found something. ``--quick`` runs memcheck alone.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.kernel_cases import MAKERS, forward_backward
from benchmarks.report import ROOT, Figure, arguments, leave_out, print_figures, write_report

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
BATCH = 3


def main() -> None:
    """Run the tools, print the table, write the JSON."""
    parser = arguments(__doc__)
    parser.add_argument("--tools", nargs="+", choices=TOOLS, help="these alone")
    parser.add_argument("--operations", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.operations:
        run_operations()
        return
    if not torch.cuda.is_available():
        leave_out("there is no GPU", given.json)
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(sanitizer).is_file():
        leave_out("compute-sanitizer, which comes with CUDA's toolkit, is not on the PATH", given.json)
    # Compiled here, where that is quick.
    subprocess.run(command(), cwd=ROOT, env=environment(), check=True)
    figures = {}
    for tool in given.tools or (TOOLS[:1] if given.quick else TOOLS):
        found, words = errors(sanitizer, tool)
        figures[tool] = Figure.at_most(found, "errors", 0, words)
    print_figures("compute-sanitizer", figures)
    write_report(given.json, figures)
    if not all(figure.holds for figure in figures.values()):
        sys.exit(1)


def command() -> list[str]:
    """Starts ``run_operations`` in a process."""
    return [sys.executable, "-m", "benchmarks.gpu_sanitize", "--operations"]


def environment() -> dict[str, str]:
    """Each tensor gets memory of its own, so that what lies beyond it is nobody's."""
    return {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


def errors(sanitizer: str, tool: str) -> tuple[int, str]:
    """Number of errors, and the summary in the tool's words; its whole report is printed if there are any."""
    done = subprocess.run(
        [sanitizer, "--tool", tool, "--error-exitcode", "9", *command()],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    summary = re.findall(r"SUMMARY: (.*)", done.stdout)
    number = re.search(r"\d+", summary[-1]) if summary else None
    if number is None or done.returncode not in (0, 9):
        print(done.stdout[-8000:])
        raise RuntimeError(f"{tool} did not run to its end: exit code {done.returncode}")
    if done.returncode or int(number[0]):
        print(done.stdout[:8000])
    return max(int(number[0]), int(done.returncode != 0)), summary[-1]


def run_operations() -> None:
    """Every case forward and backward, untuned: each kernel's first configuration."""
    torch.use_deterministic_algorithms(True)
    # Filling memory would hide reads of what nobody has written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    for dtype in (torch.float32, torch.bfloat16):
        for maker in MAKERS:
            for case in maker(BATCH, "cuda", dtype):
                forward_backward(case, case.kernel)()
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
