"""The benchmark of training steps, as far as it goes without a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_training import compare

ROOT = Path(__file__).parents[2]


def case(rate: float, mfu: float | None = None) -> dict[str, Any]:
    return {"rate": rate, "mfu": mfu, "peak_gib": 10.0, "device": "card"}


def test_figures_are_held_against_their_targets() -> None:
    found = {
        "plain tf32": case(500.0, 0.07),
        "eager": case(1400.0, 0.19),
        "kernels": case(2000.0, 0.27),
        "kernels + towers": {"failed": "out of memory"},
    }
    figures = compare(found, 96, targets=True)
    assert figures["batch 96, kernels: MFU"].holds is True
    assert figures["batch 96, eager: MFU"].holds is False
    assert figures["batch 96, plain tf32: MFU"].holds is None
    ratio = figures["batch 96, times faster than plain tf32"]
    assert (ratio.value, ratio.holds, ratio.beside) == (4.0, True, "best of ours: kernels")
    assert "out of memory" in figures["batch 96, kernels + towers"].beside
    assert all(figure.holds is None for figure in compare(found, 96, targets=False).values())


@pytest.mark.slow
@pytest.mark.exhaustive
def test_its_cases_run_on_a_cpu(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.gpu_training", "--network", "quickstart", "--batches", "8"),
            *("--steps", "1", "--only", "plain autocast", "large", "--json", path),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(path.read_text())["figures"]
    assert figures["batch 8, plain autocast"]["value"] > 0, figures
    assert figures["batch 16, 16 in passes of 4"]["value"] > 0, figures
