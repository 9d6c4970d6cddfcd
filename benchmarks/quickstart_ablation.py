"""What each part of the quickstart's recipe is worth: mean IoU on held-out scenes, by training seed.

    python -m benchmarks.quickstart_ablation --seeds 3 --ablation-seeds 1

Needs the data of ``make quickstart``. A run that is there is taken over if it is complete and came from the same
configuration and the same shards; otherwise it is trained anew. Runs of ``--quick`` have a folder of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.report import Figure, leave_out, write_report

CONFIG = "configs/quickstart.yaml"

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
    parser.add_argument(
        "--quick", action="store_true", help="one seed and twenty steps a run, to see that it works"
    )
    parser.add_argument("--json", help="file for the figures")
    arguments = parser.parse_args()
    if arguments.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {arguments.seeds}")
    data = Path(arguments.data)
    if not (data / "train" / "manifest.json").is_file() or not (data / "eval").is_dir():
        leave_out(f"there is no data in {data}: run `make quickstart` first, or give --data", arguments.json)
    runs = Path(arguments.runs) / "quick" if arguments.quick else Path(arguments.runs)
    scores: dict[str, list[float]] = {}
    for name, overrides in VARIANTS.items():
        seeds = arguments.seeds if name == "all losses" else arguments.ablation_seeds
        for seed in range(min(seeds, 1) if arguments.quick else seeds):
            run_dir = runs / f"{name.replace(' ', '-')}-seed{seed}"
            settings = [
                f"run_dir={run_dir}",
                f"data.shards={data / 'train'}",
                f"evaluation.data_root={data / 'eval'}",
                *overrides,
                f"seed={seed}",
                *(["train.steps=20"] if arguments.quick else []),
            ]
            if is_done(run_dir, settings):
                print(f"{name}, seed {seed}: taken from {run_dir}", flush=True)
            else:
                # What is left of another run would be resumed.
                shutil.rmtree(run_dir, ignore_errors=True)
                train(settings)
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
        name: Figure.at_least(
            statistics.mean(values),
            "mIoU",
            TARGET if name == "all losses" else None,
            f"seeds {' '.join(f'{value:.3f}' for value in values)}",
        )
        for name, values in scores.items()
    }
    write_report(arguments.json, figures)


def is_done(run_dir: Path, settings: list[str]) -> bool:
    """Whether ``run_dir`` holds a complete run of the recipe with ``settings`` on the shards as they are now."""
    from segclip.data_pipelines.shard_sets import read_sets
    from segclip.trainer.config import load_run_config
    from segclip.trainer.export import describe_data

    saved, card = run_dir / "config.yaml", run_dir / "export" / "config.json"
    if not all(path.is_file() for path in (run_dir / "summary.json", saved, card)):
        return False
    wanted = load_run_config(CONFIG, settings)
    # Through YAML and back, as the saved one went: tuples are lists there.
    if yaml.safe_load(saved.read_text()) != yaml.safe_load(yaml.safe_dump(wanted.model_dump(mode="json"))):
        return False
    return json.loads(card.read_text())["card"]["data"] == describe_data(read_sets(wanted.data))


def train(settings: list[str]) -> None:
    """One training run by the command that users type."""
    binaries = Path(sys.executable).parent
    command = [
        str(binaries / "deepspeed"), "--num_accelerators", "2", "trainer/run.py", "--config", CONFIG, *settings,
    ]  # fmt: skip
    print("$", " ".join(command), flush=True)
    path = f"{binaries}{os.pathsep}{os.environ['PATH']}"
    code = subprocess.run(command, check=False, env={**os.environ, "PATH": path}).returncode
    if code:
        sys.exit(f"error: training ended with exit code {code}; its message is above")


if __name__ == "__main__":
    main()
