"""``segclip-doctor``: check what a run needs before it is started.

``segclip-doctor [environment]`` checks this machine, and with ``--config`` what that run reads and writes;
``segclip-doctor memory --config … --gpus N`` tells how much memory each card would need; ``segclip-doctor mlflow RUN``
sends what MLflow has not taken of a run; ``segclip-doctor dataset NAME --root …`` reads a benchmark's files.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NoReturn

from segclip.console import Finding, cli
from segclip.eval.datasets.published import DATASETS

if TYPE_CHECKING:
    from segclip.eval.datasets.doctor import DatasetReport
    from segclip.trainer.config import RunConfig
    from segclip.trainer.memory import CardMemory

__all__ = ["EXIT_BROKEN", "build_parser", "main"]

EXIT_BROKEN = 1
MARKS = {"ok": "ok     ", "warning": "warning", "broken": "BROKEN "}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="segclip-doctor", description="Check what a run needs before it is started."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    environment = commands.add_parser(
        "environment",
        help="versions, GPUs, NCCL, compilers; with --config also disk, shards, MLflow (the default)",
        description="Check this machine. The exit code is 1 if something that is needed is broken.",
    )
    _add_config(environment, required=False)
    environment.set_defaults(command_main=_environment)

    memory = commands.add_parser(
        "memory",
        help="memory that each card needs",
        description="Predict the memory of each card (formulae: segclip.trainer.memory), and with --measure make two "
        "steps on this machine with as many samples a rank. For several ranks, start it by deepspeed --module "
        "segclip.trainer.doctor_cli memory …",
    )
    _add_config(memory, required=True)
    memory.add_argument("--gpus", type=int, required=True, metavar="N", help="cards of the run, of all hosts")
    memory.add_argument(
        "--measure", action="store_true", help="make two steps here and print what they hold beside it"
    )
    memory.set_defaults(command_main=_memory)

    mlflow = commands.add_parser(
        "mlflow",
        help="send what MLflow has not taken of a run",
        description="Send the records of a run that its server did not take while it went on, from RUN/mlflow.",
    )
    mlflow.add_argument("run_dir", metavar="RUN", help="folder of the run")
    mlflow.set_defaults(command_main=_send_records)

    dataset = commands.add_parser(
        "dataset",
        help="read all files of a benchmark",
        description="Count the images of a split, read every image and label file, and compare the labels' values "
        "with the class list. The exit code is 1 if something is wrong. docs/datasets.md shows the folders.",
    )
    dataset.add_argument("name", metavar="NAME", help=f"{', '.join(DATASETS)}, or a YAML file")
    dataset.add_argument("--root", metavar="DIR", help="folder the data set lies in; a YAML file has its own")
    dataset.add_argument("--split", default="val", metavar="NAME", help="split to read (default: val)")
    dataset.add_argument(
        "--processes", type=int, default=os.cpu_count() or 1, metavar="N", help="default: %(default)s"
    )
    dataset.add_argument("--json", metavar="FILE", help="write what was found there as well")
    dataset.set_defaults(command_main=_dataset)

    for command in (environment, memory, mlflow, dataset):
        # Behind the sub-command, too.
        command.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )
    return parser


def _add_config(parser: argparse.ArgumentParser, required: bool) -> None:
    parser.add_argument("--config", required=required, metavar="FILE", help="YAML file of a run")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="settings that replace those of the file"
    )
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)  # of launchers


def _environment(arguments: argparse.Namespace) -> int:
    config = _load(arguments)
    from segclip.trainer.doctor import check_configuration, check_environment

    broken = _print(check_environment(config))
    if config is not None:
        broken += _print(check_configuration(config))
    print(f"{broken} to mend" if broken else "all that is needed is there", flush=True)
    return EXIT_BROKEN if broken else 0


def _print(findings: Iterable[Finding]) -> int:
    """Print as they come; returns how many are broken."""
    broken = 0
    for finding in findings:
        print(f"{MARKS[finding.status]} {finding.name}: {finding.text}", flush=True)
        if finding.status != "ok" and finding.remedy:
            print(f"        -> {finding.remedy}", flush=True)
        broken += finding.status == "broken"
    return broken


def _memory(arguments: argparse.Namespace) -> int:
    if arguments.gpus < 1:
        raise ValueError(f"--gpus must be 1 or more, got {arguments.gpus}")
    config = _load(arguments)
    assert config is not None
    from segclip.trainer.memory import micro_batch, predict

    # auto is bf16 on every card that training is done on.
    wanted = config.train.precision
    precision: str = "bf16" if wanted == "auto" else wanted
    samples = micro_batch(config, arguments.gpus)
    columns = {
        f"{arguments.gpus} GPUs, {precision}, predicted": predict(config, arguments.gpus, precision, "cuda")
    }
    if not arguments.measure:
        _table(config, samples, columns)
        _remedies()
        return 0

    from segclip.trainer.distributed import start
    from segclip.trainer.memory_measured import measure
    from segclip.trainer.precision import resolve_precision

    ranks = start()
    # As many samples a rank as in the whole run.
    local = config.train.global_batch // arguments.gpus * ranks.world_size
    here = config.model_copy(update={"train": config.train.model_copy(update={"global_batch": local})})
    precision = resolve_precision(wanted, ranks.device)
    where = f"{ranks.world_size} x {ranks.device.type} here, {precision}"
    columns[f"{where}, predicted"] = predict(here, ranks.world_size, precision, ranks.device.type)
    columns[f"{where}, measured"], peak = measure(here, ranks)
    if ranks.is_first:
        _table(config, samples, columns)
        if peak is not None:
            print(f"\nmost that was ever allocated on this GPU: {_mib(peak)} MiB")
        _remedies()
    return 0


def _send_records(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from segclip.credentials import without_credentials
    from segclip.trainer.config import load_run_config
    from segclip.trainer.spool import Spool
    from segclip.trainer.tracking import Tracker, tracking_uri

    folder = Path(arguments.run_dir)
    if not (folder / "mlflow" / "records.jsonl").is_file():
        raise ValueError(f"{folder} holds no records for MLflow: give the folder of a run that recorded some")
    config = load_run_config(folder / "config.yaml")
    waiting = Spool(folder / "mlflow").waiting()
    print(
        f"{waiting} records wait for {without_credentials(tracking_uri(config.tracking, folder))}", flush=True
    )
    if not waiting:
        return 0
    tracker = Tracker(config.tracking, folder, config.name, training=False)
    left = tracker.drain()
    print(f"{waiting - left} sent to run {tracker.run_id}, {left} left", flush=True)
    return EXIT_BROKEN if left else 0


def _dataset(arguments: argparse.Namespace) -> int:
    import json
    from pathlib import Path

    from segclip.console import progress
    from segclip.eval.datasets.doctor import check_dataset

    if arguments.processes < 1:
        raise ValueError(f"--processes must be at least 1, got {arguments.processes}")
    with progress() as bar:
        report = check_dataset(
            arguments.name,
            arguments.root,
            arguments.split,
            processes=arguments.processes,
            begin=lambda images: bar.add_task("reading", total=images),
            tick=lambda images: bar.advance(bar.task_ids[0], images),
        )
    if report.classes:
        _print_histogram(report)
    broken = _print(report.findings)
    if arguments.json is not None:
        Path(arguments.json).write_text(json.dumps(report.as_dict(), indent=1) + "\n", encoding="utf-8")
    print(f"{broken} to mend" if broken else f"{arguments.name} can be scored", flush=True)
    return EXIT_BROKEN if broken else 0


def _print_histogram(report: DatasetReport) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    total = max(1, sum(each.pixels for each in report.classes) + report.ignored_pixels)
    table = Table("label", "class", "pixels %", "images")
    for column in (0, 2, 3):
        table.columns[column].justify = "right"
    for each in report.classes:
        share = f"{100 * each.pixels / total:.3f}" if each.pixels else "never"
        table.add_row(
            str(each.value),
            escape(each.name),
            share,
            f"{each.images:,}",
            style=None if each.pixels else "yellow",
        )
    table.add_row("", "(ignored)", f"{100 * report.ignored_pixels / total:.3f}", "")
    Console().print(table)


def _table(config: RunConfig, samples: int, columns: dict[str, CardMemory]) -> None:
    print(
        f"{config.name}: ZeRO stage {config.zero.stage}, {samples} samples a rank at a time; MiB a rank",
        flush=True,
    )
    names = list(columns)
    for number, name in enumerate(names, 1):
        print(f"  ({number}) {name}")
    print(" " * 14 + "".join(f"{f'({number})':>14}" for number in range(1, len(names) + 1)))
    for part in ("parameters", "gradients", "optimizer", "buckets", "activations", "total", "host"):
        values = [getattr(columns[name], part) for name in names]
        if part == "host" and not any(values):
            continue
        print(f"{part:<14}" + "".join(f"{_mib(value):>14}" for value in values))
    sys.stdout.flush()


def _remedies() -> None:
    print("\nif it does not fit, in the order of what it costs:")
    from segclip.trainer.memory import REMEDIES

    for remedy in REMEDIES:
        print(f"  {remedy}")


def _mib(count: int | None) -> str:
    return "-" if count is None else f"{count / 2**20:,.1f}"


def _load(arguments: argparse.Namespace) -> RunConfig | None:
    if arguments.config is None:
        if arguments.overrides:
            raise ValueError(
                f"{arguments.overrides[0]!r} changes a configuration, but none is given: add --config FILE"
            )
        return None
    from segclip.trainer.config import load_run_config

    return load_run_config(arguments.config, arguments.overrides)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the command."""
    words = list(sys.argv[1:] if argv is None else argv)
    launched = [word for word in words if word.startswith(("--local_rank", "--local-rank"))]
    if launched:  # given first, before the sub-command
        words = [word for word in words if word not in launched]
        os.environ.setdefault("LOCAL_RANK", launched[0].partition("=")[2] or "0")
    # Alone, or with options alone, it checks the environment.
    if not words or (words[0] not in ("environment", "memory", "mlflow", "dataset", "-h", "--help")):
        words = ["environment", *words]
    cli(lambda arguments: int(arguments.command_main(arguments)), build_parser(), words)


if __name__ == "__main__":
    main()
