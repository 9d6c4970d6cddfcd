"""What each part of the quickstart's recipe is worth: mean IoU on held-out scenes, by training seed.

    python -m benchmarks.quickstart_ablation --seeds 3 --ablation-seeds 1

Needs the data of ``make quickstart``. Runs that are already there are not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.report import Figure, write_report

VARIANTS = {
    "all losses": [],
    "without superpixel KL": ["loss.superpixel_kl=0"],
    "without reconstruction": ["loss.reconstruction=0"],
    "without leaving out empty centers": ["model.ignore_empty_centers=false"],
    "without leaving out false negatives": ["loss.skip_false_negatives=false"],
}
TARGET = 0.50


def main() -> None:
    """Train what is missing, then print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="training seeds of the whole recipe")
    parser.add_argument("--ablation-seeds", type=int, default=1, help="training seeds of each ablation")
    parser.add_argument("--data", default="runs/quickstart/data", help="data of a quickstart")
    parser.add_argument("--runs", default="runs/ablation", help="folder for the runs")
    parser.add_argument("--quick", action="store_true", help="twenty steps a run, to see that it works")
    parser.add_argument("--json", help="file for the figures")
    arguments = parser.parse_args()
    scores: dict[str, list[float]] = {}
    for name, overrides in VARIANTS.items():
        for seed in range(arguments.seeds if name == "all losses" else arguments.ablation_seeds):
            run_dir = Path(arguments.runs) / f"{name.replace(' ', '-')}-seed{seed}"
            if not (run_dir / "summary.json").is_file():
                train(
                    run_dir,
                    Path(arguments.data),
                    [*overrides, f"seed={seed}", *(["train.steps=20"] if arguments.quick else [])],
                )
            scores.setdefault(name, []).append(json.loads((run_dir / "summary.json").read_text())["miou"])

    whole = statistics.mean(scores["all losses"])
    table = Table(title="Quickstart: mean IoU on 500 held-out scenes", title_justify="left")
    for column in ("recipe", "seeds", "mean", "difference"):
        table.add_column(column, justify="left" if column == "recipe" else "right")
    for name, values in scores.items():
        mean = statistics.mean(values)
        difference = "" if name == "all losses" else f"{mean - whole:+.3f}"
        table.add_row(name, " ".join(f"{value:.3f}" for value in values), f"{mean:.3f}", difference)
    Console().print(table)
    figures = {
        name: Figure(
            statistics.mean(values),
            "mIoU",
            target=TARGET if name == "all losses" else None,
            holds=statistics.mean(values) >= TARGET if name == "all losses" else None,
            beside=f"seeds {' '.join(f'{value:.3f}' for value in values)}",
        )
        for name, values in scores.items()
    }
    write_report(arguments.json, figures)


def train(run_dir: Path, data: Path, overrides: list[str]) -> None:
    """One training run by the command that users type."""
    binaries = Path(sys.executable).parent
    command = [
        str(binaries / "deepspeed"), "--num_accelerators", "2", "trainer/run.py", "--config", "configs/quickstart.yaml",
        f"run_dir={run_dir}", f"data.shards={data / 'train'}", f"evaluation.data_root={data / 'eval'}", *overrides,
    ]  # fmt: skip
    print("$", " ".join(command), flush=True)
    subprocess.run(
        command, check=True, env={**os.environ, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}
    )


if __name__ == "__main__":
    main()
