"""``make quickstart``: the whole system in miniature, by the commands a user would type.

Writes captioned scenes as shards, trains on two processes through DeepSpeed, scores the result with the standalone
evaluation, draws a page of pictures and sums up in ``summary.json``. With ``--store s3`` the shards lie on a real S3
server on this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn, TypeVar

from rich.console import Console
from rich.table import Table

from segclip.console import UserError, cli
from segclip.trainer.progress import duration

__all__ = ["Summary", "build_parser", "main"]

CONFIG = "configs/quickstart.yaml"
TRAINING_SCENES, TRAINING_SCENES_SEED = 60_000, 1
# Scenes for the score come from a seed that nothing was ever chosen by.
HELD_OUT_SCENES, HELD_OUT_SEED = 500, 880_001
# Lies in every folder that the quickstart made, and so may remove.
MARKER = ".segclip-quickstart"
TARGETS = {"miou": (">=", 0.50), "minutes_training": ("<=", 5.0), "minutes_total": ("<=", 12.0)}

Value = TypeVar("Value")


@dataclass(frozen=True)
class Summary:
    """What the quickstart measured.

    Minutes are wall-clock time; the total includes the installation. The training is the whole command, its start-up
    and checkpoints included, but not the scoring at its end, which counts as evaluation.
    """

    miou: float
    miou_untrained: float
    minutes_install: float
    minutes_data: float
    minutes_training: float
    minutes_evaluation: float
    minutes_total: float
    samples_per_second: float


class _Stopwatch:
    """Minutes of each named part."""

    def __init__(self) -> None:
        self.minutes: dict[str, float] = {}

    def run(self, name: str, title: str, work: Callable[[], Value]) -> Value:
        print(f"\n== {title}", flush=True)
        begin = time.perf_counter()
        value = work()
        seconds = time.perf_counter() - begin
        self.minutes[name] = self.minutes.get(name, 0.0) + seconds / 60
        print(f"-- {duration(seconds)}", flush=True)
        return value


def build_parser() -> argparse.ArgumentParser:
    """The options of ``python -m segclip.trainer.quickstart``."""
    parser = argparse.ArgumentParser(
        prog="python -m segclip.trainer.quickstart", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "--store",
        choices=("file", "s3"),
        default="file",
        help="where the shards lie while training reads them",
    )
    parser.add_argument("--s3-port", type=int, help="port of the S3 server (default: a free one)")
    parser.add_argument("--run-dir", default="runs/quickstart", help="folder for everything that is written")
    parser.add_argument("--scenes", type=int, default=TRAINING_SCENES, help="training scenes to draw")
    parser.add_argument(
        "--held-out-scenes", type=int, default=HELD_OUT_SCENES, help="scenes to draw for the score"
    )
    parser.add_argument("--processes", type=int, default=2, help="training processes")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help=f"settings that replace those of {CONFIG}"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point."""
    cli(_run, build_parser(), argv)


def _run(arguments: argparse.Namespace) -> int:
    if not Path(CONFIG).is_file():
        raise ValueError(f"{CONFIG} is not here: run the quickstart in the folder of the checkout")
    _check_store(arguments.store, arguments.s3_port)
    root = Path(arguments.run_dir)
    run_dir, data = root / "train", root / "data"
    _make_anew(root)
    watch = _Stopwatch()

    watch.run(
        "data",
        "Captioned scenes: shards to train on, a held-out set to score on",
        lambda: _draw(root, arguments.scenes, arguments.held_out_scenes),
    )
    shards = _shards(arguments.store, arguments.s3_port, data / "train", root / "s3", watch)
    with shards as (url, environment):
        settings = (f"run_dir={run_dir}", f"data.shards={url}", f"evaluation.data_root={data / 'eval'}")
        watch.run(
            "training",
            f"Training on {arguments.processes} processes",
            lambda: _call(
                "deepspeed", "--num_accelerators", arguments.processes, "trainer/run.py", "--config", CONFIG,
                *settings, *arguments.overrides, environment=environment,
            ),
        )  # fmt: skip

    def score() -> tuple[float, float]:
        _export_untrained(run_dir / "config.yaml", root / "untrained")
        untrained = _evaluate(root / "untrained", data / "eval", root / "evaluation-untrained", pictures=0)
        return _evaluate(run_dir / "export", data / "eval", root / "evaluation", pictures=8), untrained

    miou, untrained = watch.run("evaluation", "Scoring, before and after training", score)
    trained = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    # The training command scores what it has trained.
    scoring = trained.get("seconds_scoring", 0.0) / 60
    install = _install_minutes()
    summary = Summary(
        miou=miou,
        miou_untrained=untrained,
        minutes_install=install,
        minutes_data=watch.minutes["data"],
        minutes_training=watch.minutes["training"] - scoring,
        minutes_evaluation=watch.minutes["evaluation"] + scoring,
        minutes_total=install + sum(watch.minutes.values()),
        samples_per_second=trained["samples_per_second"],
    )
    (root / "summary.json").write_text(json.dumps(asdict(summary), indent=1) + "\n", encoding="utf-8")
    _record(summary, root / "summary.json", run_dir, trained.get("mlflow_run_id"))
    _report(summary, root, run_dir)
    return 0


def _draw(root: Path, scenes: int, held_out: int) -> None:
    """Shards to train on, a set to score on, and a page of pictures from the shards."""
    data = root / "data"
    for command, folder, count, seed in (
        ("scenes", "train", scenes, TRAINING_SCENES_SEED),
        ("scenes-voc", "eval", held_out, HELD_OUT_SEED),
    ):
        _call("segclip-shards", command, "--out", data / folder, "--count", count, "--seed", seed)
    _call("segclip-shards", "show", data / "train", "--out", root / "scenes.png")


def _check_store(store: str, port: int | None) -> None:
    """Find out that the server cannot start before an earlier run is removed and scenes are drawn.

    Raises:
        ValueError: the port is in use or not used at all, or SeaweedFS is not installed.
    """
    if store == "s3":
        from segclip.data_pipelines.storage.s3_server import check_server

        check_server(port)
    elif port is not None:
        raise ValueError(
            f"--s3-port {port} is of no use with --store {store}: add --store s3, or leave it out"
        )


def _make_anew(root: Path) -> None:
    """An empty folder that bears the mark of the quickstart.

    Raises:
        ValueError: something else is there, which is left alone.
    """
    if root.exists() and not root.is_dir():
        raise ValueError(f"--run-dir {root} is a file; give a folder that is new or empty")
    if root.is_dir() and any(root.iterdir()):
        if not (root / MARKER).is_file():
            raise ValueError(
                f"--run-dir {root} holds files that no quickstart made (it has no {MARKER}); "
                "give another folder, or remove this one yourself"
            )
        print(f"removing {root}, left by an earlier quickstart", flush=True)
        shutil.rmtree(root)
    root.mkdir(parents=True, exist_ok=True)
    (root / MARKER).write_text("Made by the quickstart, which removes this folder when it is run again.\n")


def _record(summary: Summary, file: Path, run_dir: Path, run_id: str | None) -> None:
    """Add the figures to the MLflow run of the training, as metrics and as a file."""
    from segclip.trainer.config import load_run_config
    from segclip.trainer.tracking import Tracker

    config = load_run_config(run_dir / "config.yaml")
    if not config.tracking.enabled or run_id is None:
        return
    tracker = Tracker(config.tracking, run_dir, config.name, run_id)
    tracker.metrics(
        {f"quickstart/{name}": value for name, value in asdict(summary).items()}, config.train.steps
    )
    tracker.artifact(file)
    tracker.finish()


@contextmanager
def _shards(
    store: str, port: int | None, local: Path, server_folder: Path, watch: _Stopwatch
) -> Iterator[tuple[str, Mapping[str, str]]]:
    """URL of the training shards, and the variables that a process needs to read them."""
    if store == "file":
        yield local.resolve().as_uri(), {}
        return
    from segclip.data_pipelines.storage.s3_server import s3_server

    with s3_server(server_folder, port=port) as server:
        url = f"{server.url}/scenes"

        def upload() -> None:
            _call("segclip-shards", "upload", local, url, environment=server.environment)

        watch.run("data", f"S3 server on {server.endpoint}: uploading the shards to {url}", upload)
        yield url, server.environment
    print("S3 server stopped", flush=True)


def _call(*command: object, environment: Mapping[str, str] | None = None) -> None:
    """Run a command as a user would, showing it first.

    Raises:
        UserError: it failed; it has said why.
    """
    words = [str(word) for word in command]
    print(f"$ {' '.join(words)}", flush=True)
    # The commands of this environment, whether or not it is activated.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    done = subprocess.run(words, env={**os.environ, "PATH": path, **(environment or {})}, check=False)
    if done.returncode:
        raise UserError(f"{words[0]} ended with exit code {done.returncode}; its message is above")


def _export_untrained(config_file: Path, folder: Path) -> None:
    """The network as it is before the first step."""
    import torch

    from segclip.models.export_folder import export
    from segclip.models.segclip import SegCLIP
    from segclip.trainer.config import load_run_config

    config = load_run_config(config_file)
    torch.manual_seed(config.seed)
    export(SegCLIP(config.model), folder)


def _evaluate(checkpoint: Path, data_root: Path, out: Path, pictures: int) -> float:
    _call(
        "segclip-eval", "--checkpoint", checkpoint, "--dataset", "scenes", "--data-root", data_root, "--out", out,
        "--pictures", pictures,
    )  # fmt: skip
    return float(json.loads((out / "result.json").read_text(encoding="utf-8"))["miou"])


def _install_minutes() -> float:
    """Minutes that ``make`` took to install this environment; 0 if something else made it."""
    record = Path(sys.prefix) / "install_seconds"
    return float(record.read_text()) / 60 if record.is_file() else 0.0


def _report(summary: Summary, root: Path, run_dir: Path) -> None:
    table = Table(title="Quickstart", title_justify="left")
    for column in ("figure", "value", "target", ""):
        table.add_column(column, justify="right" if column in ("value", "target") else "left")
    for name, value in asdict(summary).items():
        sign, bound = TARGETS.get(name, ("", 0.0))
        holds = value >= bound if sign == ">=" else value <= bound
        table.add_row(
            name,
            f"{value:,.3f}",
            f"{sign} {bound:g}" if sign else "",
            ("holds" if holds else "MISSED") if sign else "",
        )
    Console().print(table)
    print(
        f"pictures   {root / 'evaluation'}\nscenes     {root / 'scenes.png'}\nsummary    {root / 'summary.json'}"
    )
    print(f"MLflow     mlflow ui --backend-store-uri sqlite:///{run_dir / 'mlflow.db'}")
    print(f'your words segclip-segment IMAGE --checkpoint {run_dir / "export"} --classes "red circle" sand')


if __name__ == "__main__":
    main()
