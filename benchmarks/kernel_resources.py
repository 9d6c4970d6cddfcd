r"""What the Triton kernels need of each kind of GPU: registers, spills and shared memory, with no GPU at hand.

    python -m benchmarks.kernel_resources --markdown kernels/RESOURCES.md \
        --json benchmarks/results/kernel_resources.json

Every launch of every operation is recorded instead of made, and each configuration that tuning may choose is compiled
for each target, with the types, the sizes and the alignment of the launch. The figures are read from the binaries:
by cuobjdump for NVIDIA, from the metadata of the assembly for AMD. A spill is a byte of stack or local memory a
thread. ``--quick`` compiles each kernel's first configuration alone, for bfloat16.

When one operation has changed, ``--only contrastive`` compiles that alone, and takes what else belongs into the table
from the JSON that is there.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.report import Figure, arguments, print_figures, write_json, write_report

# Read when Triton is first imported: what it interprets it does not compile.
os.environ["TRITON_INTERPRET"] = "0"

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler.compiler import make_backend
from triton.runtime.autotuner import Autotuner
from triton.runtime.jit import JITFunction

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
NO_SPILLS = "sm_90"


@dataclass(frozen=True)
class Launch:
    """A kernel and what it was called with."""

    kernel: JITFunction
    configs: tuple[triton.Config, ...]
    values: dict[str, Any]


@dataclass(frozen=True)
class Resources:
    """What one thread (registers, spills) or one program (shared memory) takes."""

    kernel: str
    dtype: str
    config: str
    target: str
    registers: int
    spilled_bytes: int
    shared_bytes: int


def main() -> None:
    """Compile, print the table, write JSON and Markdown."""
    parser = arguments(__doc__)
    parser.add_argument("--markdown", metavar="PATH", help="file for the table")
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument(
        "--only", metavar="TEXT", default="", help="compile only kernels with this in their names"
    )
    given = parser.parse_args()
    if given.only and not given.json:
        parser.error("--only completes the table from the file of --json: name it")
    kept = known(Path(given.json)) if given.only else {}
    rows = []
    for dtype in (torch.bfloat16,) if given.quick else (torch.bfloat16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        for launch in launches(dtype):
            for config in launch.configs[:1] if given.quick else launch.configs:
                for target in given.targets:
                    place = (kernel_name(launch), name, config_name(launch, config), target)
                    if given.only in place[0]:
                        rows.append(resources(launch, config, target, name))
                    elif place in kept:
                        rows.append(kept[place])
                    else:
                        sys.exit(f"error: {given.json} lacks {', '.join(place)}: run without --only")
    print(markdown(rows, given.targets))
    if given.markdown:
        Path(given.markdown).write_text(page(rows, given.targets), encoding="utf-8")
    figures = summary(rows)
    print_figures("Compiled kernels", figures)
    report = write_report(None, figures)
    if given.json:
        table = {"triton": triton.__version__, "kernels": [asdict(row) for row in rows]}
        write_json(given.json, report | table)


def known(path: Path) -> dict[tuple[str, str, str, str], Resources]:
    """The rows of an earlier run with this version of Triton."""
    table = json.loads(path.read_text(encoding="utf-8"))
    if table["triton"] != triton.__version__:
        sys.exit(
            f"error: {path} is of Triton {table['triton']}, not {triton.__version__}: run without --only"
        )
    rows = [Resources(**row) for row in table["kernels"]]
    return {(row.kernel, row.dtype, row.config, row.target): row for row in rows}


def launches(dtype: torch.dtype) -> list[Launch]:
    """The launches of one forward and backward pass of all cases, one for each kernel and its switches."""
    from benchmarks.kernel_cases import MAKERS, forward_backward

    found: dict[str, Launch] = {}
    with recorded() as seen:
        for maker in MAKERS:
            # The first case of an operation: further ones differ in size alone.
            for case in {case.name.split()[0]: case for case in reversed(maker(16, "cpu", dtype))}.values():
                forward_backward(case, case.kernel)()
    for launch in seen:
        found.setdefault(kernel_name(launch), launch)
    return list(found.values())


def kernel_name(launch: Launch) -> str:
    """Operation, kernel, and what is there that may be missing (``HAS_...``)."""
    operation = launch.kernel.__module__.rpartition(".")[2].removesuffix("_triton")
    switches = [
        parameter.name.removeprefix("HAS_").lower()
        for parameter in launch.kernel.params
        if parameter.name.startswith("HAS_") and launch.values[parameter.name]
    ]
    return ", ".join([f"{operation}: {launch.kernel.__name__.strip('_')}", *switches])


def config_name(launch: Launch, config: triton.Config) -> str:
    """Tile, warps and stages."""
    sizes = {name: value for name, value in config.kwargs.items() if name in launch.kernel.arg_names}
    blocks = [f"{name.removeprefix('BLOCK_')} {value}" for name, value in sizes.items()]
    return ", ".join([*blocks, f"{config.num_warps} warps", f"{config.num_stages} stages"])


@contextlib.contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Launches are added to the list and not made."""
    seen: list[Launch] = []

    def tuned(self: Autotuner, *args: Any, **kwargs: Any) -> None:
        seen.append(
            Launch(self.fn, tuple(self.configs), dict(zip(self.arg_names, args, strict=False)) | kwargs)
        )

    def plain(self: JITFunction, *args: Any, **kwargs: Any) -> None:
        values = dict(zip(self.arg_names, args, strict=False)) | kwargs
        options = {name: values[name] for name in ("num_warps", "num_stages") if name in values}
        seen.append(Launch(self, (triton.Config({}, **options),), values))

    with patch.object(Autotuner, "run", tuned), patch.object(JITFunction, "run", plain):
        yield seen


def resources(launch: Launch, config: triton.Config, target: str, dtype: str) -> Resources:
    """Compile one configuration for one target and read what the binary says."""
    backend = make_backend(TARGETS[target])
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    values = launch.values | config.kwargs
    sizes = {name: value for name, value in config.kwargs.items() if name in launch.kernel.arg_names}
    options = {name: value for name, value in config.kwargs.items() if name not in sizes}
    for place, parameter in enumerate(launch.kernel.params):
        value = values[parameter.name]
        signature[parameter.name] = kind = "constexpr" if parameter.is_constexpr else type_of(value)
        if kind == "constexpr":
            constants[parameter.name] = value
        elif isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0):
            attributes[place,] = backend.parse_attr("D")
    compiled = triton.compile(
        ASTSource(launch.kernel, signature, constants, attributes),
        target=TARGETS[target],
        options=options | {"num_warps": config.num_warps, "num_stages": config.num_stages},
    )
    registers, spilled = (read_nvidia if "cubin" in compiled.asm else read_amd)(compiled)
    return Resources(
        kernel_name(launch),
        dtype,
        config_name(launch, config),
        target,
        registers,
        spilled,
        compiled.metadata.shared,
    )


def type_of(value: Any) -> str:
    """The type of an argument as a launch would give it."""
    if isinstance(value, torch.Tensor):
        names = {"float32": "fp32", "bfloat16": "bf16", "int64": "i64", "int32": "i32", "uint8": "u8"}
        return "*" + names[str(value.dtype).removeprefix("torch.")]
    if isinstance(value, float):
        return "fp32"
    # A launch makes a constant of each 1.
    return "constexpr" if value is None or value == 1 else "i32" if -(2**31) <= value < 2**31 else "i64"


def read_nvidia(compiled: Any) -> tuple[int, int]:
    """Registers, and bytes of stack and local memory."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name: int(re.findall(rf"\b{name}:(\d+)", text)[-1]) for name in ("REG", "STACK", "LOCAL")}
    return found["REG"], found["STACK"] + found["LOCAL"]


def read_amd(compiled: Any) -> tuple[int, int]:
    """Vector registers, and bytes of private memory, where spilled registers go."""
    text = compiled.asm["amdgcn"]
    found = {
        name: int(re.findall(rf"\.{name}:\s+(\d+)", text)[-1])
        for name in ("vgpr_count", "private_segment_fixed_size")
    }
    return found["vgpr_count"], found["private_segment_fixed_size"]


def summary(rows: list[Resources]) -> dict[str, Figure]:
    """Figures of the report."""
    figures = {}
    for target in dict.fromkeys(row.target for row in rows):
        own = [row for row in rows if row.target == target]
        spilling = [row for row in own if row.spilled_bytes]
        figures[f"{target}: kernels that spill"] = Figure.at_most(
            len(spilling),
            f"of {len(own)}",
            0 if target == NO_SPILLS else None,
            "; ".join(f"{row.kernel} ({row.dtype}, {row.config})" for row in spilling),
        )
    return figures


def markdown(rows: list[Resources], targets: list[str]) -> str:
    """A line for each kernel, type and configuration; a column for each target."""
    lines = [
        "| Kernel | Type | Configuration | " + " | ".join(targets) + " |",
        "|---" * (3 + len(targets)) + "|",
    ]
    cells: dict[tuple[str, str, str], dict[str, Resources]] = {}
    for row in rows:
        cells.setdefault((row.kernel, row.dtype, row.config), {})[row.target] = row
    for names, found in cells.items():
        values = (found[target] for target in targets)
        shown = [f"{row.registers} / {row.spilled_bytes} / {row.shared_bytes}" for row in values]
        lines.append("| " + " | ".join([*names, *shown]) + " |")
    return "\n".join(lines)


def page(rows: list[Resources], targets: list[str]) -> str:
    """The table with what a reader has to know."""
    return (
        "# What the compiled kernels need\n\n"
        f"Triton {triton.__version__}; registers a thread / bytes a thread spills / bytes of shared memory a program, "
        "read from the binaries.\nWritten by `python -m benchmarks.kernel_resources`, which needs no GPU; sizes are "
        "those of ViT-B/16 at 224 pixels.\n\n" + markdown(rows, targets) + "\n"
    )


if __name__ == "__main__":
    main()
