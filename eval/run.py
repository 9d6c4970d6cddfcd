"""``segclip-eval``: score a checkpoint on a data set under a named protocol."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from segclip.console import cli
from segclip.eval.published import DATASETS

__all__ = ["build_parser", "main", "run"]


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="segclip-eval", description=__doc__.split(": ", 1)[1])
    parser.add_argument(
        "--checkpoint", required=True, metavar="PATH", help="export folder, run folder or segclip.bin"
    )
    parser.add_argument(
        "--dataset",
        required=True,
        metavar="NAME",
        help=f"{', '.join(DATASETS)}, or a YAML file (docs/datasets.md)",
    )
    parser.add_argument(
        "--data-root", metavar="DIR", help="folder the data set lies in; a YAML file has its own"
    )
    parser.add_argument(
        "--protocol", metavar="NAME", help="name or YAML file (default: scenes for scenes, else segclip)"
    )
    parser.add_argument("--split", default="val", metavar="NAME", help="split file to read (default: val)")
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="folder for result.json, report.html and the pictures (default: CHECKPOINT/evaluation/DATASET-PROTOCOL)",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    parser.add_argument(
        "--batch-size", type=int, default=32, metavar="N", help="windows a batch (default: 32)"
    )
    parser.add_argument(
        "--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N (default: auto)"
    )
    parser.add_argument(
        "--skip-broken", action="store_true", help="leave images out that do not read, and name them"
    )
    parser.add_argument(
        "--pictures",
        type=int,
        default=8,
        metavar="N",
        help="images of each kind (evenly spaced, worst, best) in the report and on the pages (default: 8)",
    )
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Do what the command line asks. Cheap checks come first, so that a typing error costs no time."""
    from segclip.eval.datasets import open_dataset
    from segclip.eval.exports import find_export
    from segclip.eval.protocol import load_protocol

    protocol = load_protocol(arguments.protocol or ("scenes" if arguments.dataset == "scenes" else "segclip"))
    if arguments.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {arguments.batch_size}")
    if arguments.pictures < 0:
        raise ValueError(f"--pictures must be at least 0, got {arguments.pictures}")
    dataset = open_dataset(arguments.dataset, arguments.data_root, arguments.split).first(arguments.limit)
    protocol.rule(dataset.name)
    checkpoint = find_export(arguments.checkpoint)
    folder = default_folder(arguments, protocol.name) if arguments.out is None else Path(arguments.out)

    from rich.console import Console

    from segclip.eval.evaluate import evaluate
    from segclip.eval.report import class_table, summary_line
    from segclip.eval.weights import load_model, pick_device

    loaded = load_model(checkpoint, pick_device(arguments.device))
    folder.mkdir(parents=True, exist_ok=True)
    result = evaluate(
        loaded.model,
        dataset,
        protocol,
        batch_size=arguments.batch_size,
        on_error="skip" if arguments.skip_broken else "stop",
        progress=True,
        checkpoint=loaded.path,
    )
    console = Console()
    console.print(class_table(result))
    for line in result.skipped:
        console.print(f"left out: {line}", style="yellow", markup=False, soft_wrap=True)
    console.print(summary_line(result), markup=False, highlight=False, soft_wrap=True)
    from segclip.eval.outputs import write_outputs

    written = write_outputs(folder, loaded.model, dataset, protocol, result, count=arguments.pictures)
    for path in written.values():
        console.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)
    return 0


def default_folder(arguments: argparse.Namespace, protocol: str) -> Path:
    """A folder beside the checkpoint, another for each data set, protocol and part of the data set."""
    place = Path(arguments.checkpoint)
    own = Path(arguments.dataset)  # a name, or a YAML file
    name = f"{own.stem if own.suffix else own.name}-{protocol}"
    if arguments.split != "val":
        name += f"-{arguments.split}"
    if arguments.limit is not None:
        name += f"-first{arguments.limit}"
    return (place.parent if place.is_file() else place) / "evaluation" / name


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point."""
    cli(run, build_parser(), argv)


if __name__ == "__main__":
    main()
