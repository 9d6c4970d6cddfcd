"""What every benchmark writes: a table for people and JSON for machines.

The JSON is ``{"machine": …, "commit": …, "date": …, "figures": {name: figure}}``; a figure has the fields of
``Figure``. A benchmark that cannot run here says why: it ends with ``LEFT_OUT`` and writes ``{"left_out": reason}``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.table import Table

from segclip.code_version import git_commit

__all__ = [
    "LEFT_OUT",
    "Figure",
    "arguments",
    "commit",
    "leave_out",
    "machine",
    "print_figures",
    "write_json",
    "write_report",
]

ROOT = Path(__file__).parents[1]
# Exit code of a benchmark that lacks what it needs, as of tests that are skipped under automake.
LEFT_OUT = 77


@dataclass(frozen=True)
class Figure:
    """One measured number."""

    value: float
    unit: str
    target: float | None = None
    """What it has to reach (or, for costs, stay below); None: it only informs."""
    holds: bool | None = None
    """Whether it does; None without a target."""
    beside: str = ""
    """What it was measured against in the same run, and anything that a reader has to know."""

    @classmethod
    def at_least(cls, value: float, unit: str, target: float | None, beside: str = "") -> Figure:
        """One that has to reach a target; None: it only informs."""
        return cls(value, unit, target, None if target is None else value >= target, beside)

    @classmethod
    def at_most(cls, value: float, unit: str, target: float | None, beside: str = "") -> Figure:
        """One that has to stay within a target; None: it only informs."""
        return cls(value, unit, target, None if target is None else value <= target, beside)


def arguments(description: str | None, default_json: str | None = None) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks share."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="under a minute, to see that it works")
    parser.add_argument("--json", metavar="PATH", default=default_json, help="file for the figures")
    return parser


def machine() -> dict[str, Any]:
    """Processor, cores, memory, accelerator and versions."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": cores,
        "load": round(os.getloadavg()[0], 2),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if torch.cuda.is_available():
        found["gpu"] = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return found


def commit() -> str | None:
    """The commit that is checked out, with ``+changes`` if files differ from it; None outside of a repository."""
    found = git_commit()
    return found and found[:12] + ("+changes" if found.endswith("+") else "")


def write_report(path: str | Path | None, figures: Mapping[str, Figure]) -> dict[str, Any]:
    """The report of a benchmark, written to ``path`` unless that is None."""
    report = {
        "machine": machine(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "figures": {name: asdict(figure) for name, figure in figures.items()},
    }
    if path is not None:
        write_json(path, report)
    return report


def write_json(path: str | Path, tree: Mapping[str, Any]) -> None:
    """A file, in a folder that is made if it is not there."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")


def leave_out(reason: str, path: str | Path | None) -> NoReturn:
    """End a benchmark that lacks what it needs, in one line and, for whoever started it, in the JSON at ``path``."""
    if path is not None:
        write_json(path, {"left_out": reason})
    print(f"error: {reason}", file=sys.stderr, flush=True)
    sys.exit(LEFT_OUT)


def print_figures(title: str, figures: Mapping[str, Figure], console: Console | None = None) -> None:
    """The figures as a table."""
    table = Table(title=title, title_justify="left")
    for column in ("figure", "value", "target", "holds"):
        table.add_column(
            column, justify="left" if column == "figure" else "right", no_wrap=column != "figure"
        )
    table.add_column("beside", overflow="fold")
    for name, figure in figures.items():
        holds = {None: "", True: "yes", False: "NO"}[figure.holds]
        target = "" if figure.target is None else f"{figure.target:g}"
        table.add_row(name, f"{figure.value:.4g} {figure.unit}".rstrip(), target, holds, figure.beside)
    (console or Console()).print(table)


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()
