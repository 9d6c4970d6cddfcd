"""The kernels compile for each kind of GPU, and the table in the repository is about them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")


def kernels(rows: list[dict]) -> set[tuple[str, str]]:
    return {(row["kernel"], row["target"]) for row in rows}


def compiled(rows: list[dict]) -> set[tuple[str, str, str, str]]:
    return {(row["kernel"], row["dtype"], row["config"], row["target"]) for row in rows}


@pytest.mark.slow
def test_each_kernel_compiles_for_each_target(tmp_path) -> None:
    path = tmp_path / "resources.json"
    subprocess.run(
        # A warning of the compiler is an error, as in all tests.
        [
            sys.executable,
            "-W",
            "error::UserWarning",
            "-m",
            "benchmarks.kernel_resources",
            "--quick",
            "--json",
            str(path),
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
        env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path / "cache")},
    )
    rows = json.loads(path.read_text())["kernels"]
    assert not [row for row in rows if row["target"] == "sm_90" and row["spilled_bytes"]]
    assert all(0 < row["registers"] <= (512 if row["target"] == "gfx942" else 255) for row in rows)
    names = {row["kernel"] for row in rows}
    assert kernels(rows) == {(name, target) for name in names for target in TARGETS}
    assert len(names) >= 14
    kept = json.loads((ROOT / "benchmarks/results/kernel_resources.json").read_text())["kernels"]
    assert kernels(kept) == kernels(rows), "run python -m benchmarks.kernel_resources as its help says"
    assert compiled(kept) >= compiled(rows), "run python -m benchmarks.kernel_resources as its help says"


def test_the_table_shows_no_spills_on_sm_90() -> None:
    kept = json.loads((ROOT / "benchmarks/results/kernel_resources.json").read_text())
    assert not [row for row in kept["kernels"] if row["target"] == "sm_90" and row["spilled_bytes"]]
    page = (ROOT / "kernels/RESOURCES.md").read_text()
    for row in kept["kernels"]:
        figures = f"{row['registers']} / {row['spilled_bytes']} / {row['shared_bytes']}"
        start = f"| {row['kernel']} | {row['dtype']} | {row['config']} |"
        assert any(line.startswith(start) and figures in line for line in page.splitlines())


def test_the_first_configuration_fits_everywhere() -> None:
    """It is what runs untuned. gfx942 has the least shared memory, 64 KiB a program."""
    kept = json.loads((ROOT / "benchmarks/results/kernel_resources.json").read_text())
    first = {(row["kernel"], row["dtype"], row["target"]): row for row in reversed(kept["kernels"])}
    assert all(row["shared_bytes"] <= 2**16 for row in first.values() if row["target"] == "gfx942")
    # A100, H100, B200: 163, 227 and 227 KiB.
    assert all(
        row["shared_bytes"] <= 163 * 2**10 for row in kept["kernels"] if row["target"].startswith("sm_")
    )
