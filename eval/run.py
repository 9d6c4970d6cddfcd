"""``segclip-eval``: score a checkpoint on a data set under a named protocol.

On several processes: ``torchrun --nproc-per-node 8 eval/run.py ...`` or ``deepspeed eval/run.py ...``.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from segclip.console import cli
from segclip.eval.datasets.published import DATASETS

if TYPE_CHECKING:
    from segclip.eval.datasets.dataset import SegmentationDataset
    from segclip.eval.protocol import Protocol
    from segclip.eval.ranks import Ranks
    from segclip.eval.result import Result
    from segclip.eval.scoring import Task
    from segclip.models.segclip import SegCLIP

__all__ = ["build_parser", "main", "run"]


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="segclip-eval",
        description="Score a checkpoint on a data set under a named protocol.",
        epilog="`segclip-eval compare A B` says whether two results differ by more than chance.",
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="PATH",
        help="export folder, run folder, training checkpoint or segclip.bin",
    )
    parser.add_argument(
        "--dataset",
        required=True,
        nargs="+",
        metavar="NAME",
        help=f"{', '.join(DATASETS)}, or a YAML file (docs/datasets.md)",
    )
    parser.add_argument(
        "--data-root",
        nargs="+",
        metavar="DIR",
        help="folder the data set lies in; a YAML file has its own; with several data sets NAME=DIR for each",
    )
    parser.add_argument(
        "--protocol",
        nargs="+",
        metavar="NAME",
        help="name or YAML file (default: scenes for scenes, else segclip)",
    )
    parser.add_argument(
        "--matrix",
        action="store_true",
        help="score all data sets under all protocols, in one table; what has a result is read",
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
    parser.add_argument(
        "--bootstrap", type=int, default=1000, metavar="N",
        help="draws behind the confidence intervals, 0 for none (default: 1000)",
    )  # fmt: skip
    parser.add_argument(
        "--confidence", type=float, default=0.95, metavar="P", help="level of the intervals (default: 0.95)"
    )
    parser.add_argument(
        "--thresholds", action="store_true", help="also say what other background thresholds would score"
    )
    parser.add_argument(
        "--tune-split",
        metavar="NAME",
        help="with --thresholds: split to choose a threshold on, such as train",
    )
    parser.add_argument("--tune-limit", type=int, metavar="N", help="only the first N images of --tune-split")
    parser.add_argument(
        "--vocabulary", nargs="?", const="", metavar="FILE",
        help="also score under synonyms and among distractors: of a YAML file, or those that come with the package",
    )  # fmt: skip
    parser.add_argument(
        "--mlflow",
        nargs="?",
        const="",
        metavar="URI",
        help="record the result in MLflow: at URI, or else MLFLOW_TRACKING_URI, or else a file in --out. If that "
        "fails, the result is written all the same, and the exit code is 3",
    )
    parser.add_argument(
        "--mlflow-run", metavar="ID", help="run (of a training) that the result is to appear below"
    )
    # Given by launchers.
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Do what the command line asks, alone or among the processes that a launcher has started."""
    if arguments.local_rank is not None:
        os.environ.setdefault("LOCAL_RANK", str(arguments.local_rank))
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        from segclip.eval.ranks import on_ranks

        on_ranks(lambda ranks: _one_or_all(arguments, ranks), arguments.device, debug=arguments.debug)
    return _one_or_all(arguments, None)


def _one_or_all(arguments: argparse.Namespace, ranks: Ranks | None) -> int:
    from segclip.eval.matrix import one_cell, run_matrix

    if arguments.matrix:
        return run_matrix(
            arguments, lambda cell: _task(cell, _prepared(cell)), lambda cell: _run(cell, ranks), ranks
        )
    one = one_cell(arguments) if ranks is None else ranks.agreed(lambda: one_cell(arguments))
    return _run(one, ranks)


@dataclass(frozen=True)
class _Prepared:
    """What the command line names, found and checked, and nothing of it loaded."""

    dataset: SegmentationDataset
    protocol: Protocol
    checkpoint: Path
    folder: Path
    tune: SegmentationDataset | None


def _prepared(arguments: argparse.Namespace) -> _Prepared:
    """Cheap checks come first, so that a typing error costs no time."""
    from segclip.eval.class_words import class_words
    from segclip.eval.datasets.dataset import open_dataset
    from segclip.eval.exports import find_export
    from segclip.eval.matrix import cell_name, default_protocol, evaluation_folder
    from segclip.eval.protocol import load_protocol

    if arguments.mlflow:
        from segclip.eval.reports.mlflow_log import check_store

        check_store(arguments.mlflow)
    protocol = load_protocol(arguments.protocol or default_protocol([arguments.dataset]))
    if arguments.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {arguments.batch_size}")
    if arguments.pictures < 0:
        raise ValueError(f"--pictures must be at least 0, got {arguments.pictures}")
    dataset = open_dataset(arguments.dataset, arguments.data_root, arguments.split).first(arguments.limit)
    class_words(dataset, protocol)
    if arguments.tune_split is not None and not arguments.thresholds:
        raise ValueError("--tune-split is for the study of thresholds: give --thresholds as well")
    if arguments.tune_limit is not None and arguments.tune_split is None:
        raise ValueError("--tune-limit goes with --tune-split")
    tune = None
    if arguments.tune_split is not None:
        tune = open_dataset(arguments.dataset, arguments.data_root, arguments.tune_split).first(
            arguments.tune_limit
        )
    checkpoint = find_export(arguments.checkpoint)
    if arguments.out is None:
        folder = evaluation_folder(arguments.checkpoint) / cell_name(dataset, protocol, arguments)
    else:
        folder = Path(arguments.out)
    return _Prepared(dataset, protocol, checkpoint, folder, tune)


def _task(arguments: argparse.Namespace, found: _Prepared) -> Task:
    from segclip.eval.bootstrap import Resampling
    from segclip.eval.scoring import Task
    from segclip.eval.vocabulary import load_vocabulary

    return Task(
        dataset=found.dataset,
        protocol=found.protocol,
        batch_size=arguments.batch_size,
        on_error="skip" if arguments.skip_broken else "stop",
        resampling=Resampling(draws=arguments.bootstrap, level=arguments.confidence),
        thresholds=arguments.thresholds,
        tune=found.tune,
        vocabulary=None if arguments.vocabulary is None else load_vocabulary(arguments.vocabulary or None),
        checkpoint=found.checkpoint,
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    )


def _run(arguments: argparse.Namespace, ranks: Ranks | None) -> int:
    if ranks is None:
        found = _prepared(arguments)
    else:
        found = ranks.agreed(lambda: _prepared(arguments))

    from segclip.eval.scoring import score
    from segclip.eval.weights import load_model, pick_device
    from segclip.heap import keep_freed_memory

    if ranks is None:
        task = _task(arguments, found)
        device = pick_device(arguments.device)
        if device.type == "cpu":
            keep_freed_memory()
        loaded = load_model(found.checkpoint, device)
        found.folder.mkdir(parents=True, exist_ok=True)
        result = score(task, loaded.model, progress=True)
        return _show_and_write(arguments, found, loaded.model, result)

    def prepare() -> Task:
        if ranks.is_first:
            found.folder.mkdir(parents=True, exist_ok=True)
        return _task(arguments, found)

    task = ranks.agreed(prepare)
    loaded = ranks.share_model(found.checkpoint)
    result = score(task, loaded.model, ranks, progress=True)
    # The others wait: a launcher takes a process that ends for one that is done with its work.
    return ranks.agreed(
        lambda: _show_and_write(arguments, found, loaded.model, result) if ranks.is_first else 0
    )


def _show_and_write(arguments: argparse.Namespace, found: _Prepared, model: SegCLIP, result: Result) -> int:
    """Print, write and, if that is asked for, record a result; returns the exit code."""
    from rich.console import Console

    from segclip.eval.reports.outputs import write_outputs
    from segclip.eval.reports.terminal import print_result

    console = Console()
    print_result(console, result)
    written = write_outputs(
        found.folder, model, found.dataset, found.protocol, result, count=arguments.pictures
    )
    for path in written.values():
        console.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)
    if arguments.mlflow is None and arguments.mlflow_run is None:
        return 0
    return _record(arguments, found.folder, result, list(written.values()))


def _record(arguments: argparse.Namespace, folder: Path, result: Result, files: list[Path]) -> int:
    """Exit code after recording the result in MLflow."""
    from segclip.eval.reports.mlflow_log import (
        EXIT_NOT_RECORDED,
        NotRecorded,
        evaluation_store,
        log_evaluation,
    )

    store = evaluation_store(arguments.mlflow, folder)
    try:
        run_id = log_evaluation(result, files, store=store, folder=folder, parent=arguments.mlflow_run)
    except NotRecorded as error:
        if arguments.debug:
            raise
        print(f"warning: {error}; the result is in {folder}", file=sys.stderr, flush=True)
        return EXIT_NOT_RECORDED
    print(f"MLflow run {run_id}")
    return 0


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["compare"]:
        from segclip.eval import compare

        cli(compare.run, compare.build_parser(), words[1:])
    cli(run, build_parser(), words)


if __name__ == "__main__":
    # Launchers run this file as a script, which puts its folder first among the places of imports: `datasets` and
    # others there would be taken for packages of these names.
    sys.path[:] = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]
    main()
