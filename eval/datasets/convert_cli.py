"""``segclip-convert``: write the label files that are scored from those that data sets publish."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from segclip.console import cli

if TYPE_CHECKING:
    from segclip.eval.datasets.label_files import Converted

__all__ = ["build_parser", "main"]

# Their tables are in segclip.eval.datasets.relabel, whose import is not worth waiting for here.
RELABELLED = {
    "coco-object": "COCO-Object's *_instanceTrainIds.png from COCO-Stuff's maps",
    "coco-stuff": "COCO-Stuff's *_labelTrainIds.png from its maps",
    "cityscapes": "Cityscapes' *_gtFine_labelTrainIds.png from *_gtFine_labelIds.png",
}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="segclip-convert",
        description="Write the label files that are scored from those that data sets publish, beside them. Files that "
        "are there are left alone: the same command goes on where it was stopped. docs/datasets.md has the downloads.",
    )
    commands = parser.add_subparsers(dest="command", metavar="DATASET", required=True)
    context = commands.add_parser(
        "context", help="PASCAL Context's labels and lists from trainval_merged.json"
    )
    context.add_argument("--json", required=True, metavar="FILE", help="trainval_merged.json")
    _add_common(context, "VOC2010, or the folder above it")
    for name, about in RELABELLED.items():
        _add_common(commands.add_parser(name, help=about), "the data set")
    return parser


def _add_common(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--root", required=True, metavar="DIR", help=f"folder of {what}")
    parser.add_argument(
        "--splits", nargs="+", metavar="NAME", help="train, val (default: those that are there)"
    )
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count() or 1, metavar="N", help="default: %(default)s"
    )
    parser.add_argument("--overwrite", action="store_true", help="write files that are there anew")
    parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> int:
    """Do what the command line asks."""
    done: list[Converted]
    if arguments.command == "context":
        from segclip.eval.datasets.context_labels import convert_context

        done = convert_context(
            arguments.root, arguments.json, arguments.splits,
            processes=arguments.processes, overwrite=arguments.overwrite,
        )  # fmt: skip
    else:
        from segclip.eval.datasets.relabel import relabel_set

        done = relabel_set(
            arguments.command, arguments.root, arguments.splits,
            processes=arguments.processes, overwrite=arguments.overwrite,
        )  # fmt: skip
    for each in done:
        print(f"{each.name}: {each.written:,} label files written, {each.there:,} were there", flush=True)
    return 0


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point."""
    cli(run, build_parser(), argv)


if __name__ == "__main__":
    main()
