"""``segclip-eval --matrix``: one checkpoint on several data sets under several protocols, in one table.

A cell that has a result of the same weights, protocol, images and words is read, not computed again, so a matrix that
was cut short goes on where it stopped, and a cell that was scored by itself counts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from segclip.console import nearest
from segclip.eval.result import Result

if TYPE_CHECKING:
    from segclip.eval.datasets.dataset import SegmentationDataset
    from segclip.eval.protocol import ModelSizes, Protocol
    from segclip.eval.ranks import Ranks

__all__ = [
    "Cell", "cell_name", "data_roots", "default_protocol", "earlier_result", "evaluation_folder", "matrix_table",
    "one_cell", "run_matrix",
]  # fmt: skip

FORMAT = 1


@dataclass(frozen=True)
class Cell:
    """One data set under one protocol.

    Attributes:
        dataset, protocol: names.
        protocol_sha256: hash of the protocol's content.
        reason: why there is no score; None if there is.
        miou, images: of the result.
        result: its file, seen from that of the matrix.
        computed: by this run; otherwise it was read.
    """

    dataset: str
    protocol: str
    protocol_sha256: str
    reason: str | None = None
    miou: float | None = None
    images: int | None = None
    result: str | None = None
    computed: bool = False


@dataclass(frozen=True)
class _Row:
    """A data set as the command line names it."""

    asked: str
    root: str | None
    dataset: SegmentationDataset


def one_cell(arguments: argparse.Namespace) -> argparse.Namespace:
    """The command line of an evaluation that is no matrix: one data set, protocol and data root instead of lists.

    Raises:
        ValueError: there are several.
    """
    roots = data_roots(arguments.data_root or (), arguments.dataset)
    for option, values in (("--dataset", arguments.dataset), ("--protocol", arguments.protocol or ())):
        if len(values) > 1:
            raise ValueError(f"{option} names {len(values)} ({', '.join(values)}); add --matrix to score all")
    return argparse.Namespace(
        **{
            **vars(arguments),
            "dataset": arguments.dataset[0],
            "protocol": arguments.protocol[0] if arguments.protocol else None,
            "data_root": roots[arguments.dataset[0]],
        }
    )


def data_roots(given: Sequence[str], datasets: Sequence[str]) -> dict[str, str | None]:
    """The folder of each data set, from ``NAME=DIR`` for one, or ``DIR`` for all the others.

    Raises:
        ValueError: a name that is not asked for (the nearest is offered), or two folders for one data set.
    """
    named: dict[str, str] = {}
    other: str | None = None
    for text in given:
        name, sign, folder = text.partition("=")
        if sign and (name in datasets or not Path(text).exists()):
            if name not in datasets:
                raise ValueError(
                    f"--data-root {text}: no data set {name!r} is asked for{nearest(name, datasets)}; "
                    f"--dataset names {', '.join(datasets)}"
                )
            if name in named:
                raise ValueError(f"--data-root names two folders for {name}: {named[name]} and {folder}")
            named[name] = folder
        elif other is not None:
            raise ValueError(
                f"--data-root names two folders, {other} and {text}; say which data set each is for, such as "
                f"{datasets[0]}={other}"
            )
        else:
            other = text
    return {dataset: named.get(dataset, other) for dataset in datasets}


@dataclass(frozen=True)
class _Plan:
    """What the command line names, found and checked, and nothing of it loaded."""

    rows: tuple[_Row, ...]
    protocols: dict[str, Protocol]
    checkpoint: Path
    folder: Path


def _plan(arguments: argparse.Namespace) -> _Plan:
    from segclip.eval.datasets.dataset import open_dataset
    from segclip.eval.exports import find_export
    from segclip.eval.protocol import load_protocol

    asked = arguments.protocol or [default_protocol(arguments.dataset)]
    protocols = {name: load_protocol(name) for name in asked}
    _refuse_repeated("protocols", [protocol.name for protocol in protocols.values()], asked)
    roots = data_roots(arguments.data_root or (), arguments.dataset)
    rows = tuple(
        _Row(name, root, open_dataset(name, root, arguments.split).first(arguments.limit))
        for name, root in roots.items()
    )
    _refuse_repeated("data sets", [row.dataset.name for row in rows], arguments.dataset)
    folder = evaluation_folder(arguments.checkpoint) if arguments.out is None else Path(arguments.out)
    return _Plan(rows, protocols, find_export(arguments.checkpoint), folder)


def run_matrix(
    arguments: argparse.Namespace,
    check_cell: Callable[[argparse.Namespace], object],
    evaluate_cell: Callable[[argparse.Namespace], object],
    ranks: Ranks | None = None,
) -> int:
    """Score every cell that lacks a result; print the table; write ``matrix.json``.

    Args:
        arguments: of ``segclip-eval``, with lists of data sets, protocols and data roots.
        check_cell: refuses the command line of a single evaluation that cannot be done; loads nothing.
        evaluate_cell: scores one data set under one protocol and writes ``result.json`` into ``out``, on all ranks.
        ranks: that share the images of each cell; the first looks at earlier results, prints and writes.

    Raises:
        ValueError: anything on the command line is wrong, or an evaluation failed. Results so far stay.
    """
    from segclip.eval.weights import load_model, weights_sha256

    plan = _plan(arguments) if ranks is None else ranks.agreed(lambda: _plan(arguments))
    loaded = load_model(plan.checkpoint) if ranks is None else ranks.share_model(plan.checkpoint)
    weights, config = weights_sha256(loaded.model), loaded.model.config
    del loaded  # each evaluation loads its own, where it runs
    is_first = ranks is None or ranks.is_first
    console = Console()

    def undefined() -> list[str | None]:
        """Why each cell is left out; whatever else is wrong with one is said before the first is scored."""
        reasons = []
        for row, (given, protocol) in product(plan.rows, plan.protocols.items()):
            reasons.append(_undefined(row.dataset, protocol, config))
            if reasons[-1] is None:
                check_cell(_of_cell(arguments, plan, row, given, protocol))
        return reasons

    reasons = undefined() if ranks is None else ranks.agreed(undefined)
    cells = []
    for (row, (given, protocol)), reason in zip(
        product(plan.rows, plan.protocols.items()), reasons, strict=True
    ):
        if reason is not None:
            cells.append(Cell(row.dataset.name, protocol.name, protocol.sha256, reason))
            continue
        own = _of_cell(arguments, plan, row, given, protocol)
        if is_first and arguments.thresholds and not own.thresholds:
            said = f"{row.dataset.name} under {protocol.name}: no background threshold to study"
            console.print(said, markup=False, highlight=False, soft_wrap=True)
        path = Path(own.out) / "result.json"
        earlier = earlier_result(path, weights, row.dataset, protocol, own) if is_first else None
        known = earlier is not None if ranks is None else ranks.gather(earlier is not None)[0]
        if not known:
            evaluate_cell(own)
        if not is_first:
            continue
        if earlier is not None:
            console.print(f"read {path}", markup=False, highlight=False, soft_wrap=True)
        result = earlier or Result.read(path)
        cells.append(
            Cell(
                row.dataset.name,
                protocol.name,
                protocol.sha256,
                miou=result.miou,
                images=result.images,
                result=f"{path.parent.name}/{path.name}",
                computed=not known,
            )
        )
    if is_first:
        _show_and_write(plan.folder / "matrix.json", cells, weights, console)
    return 0


def _of_cell(
    arguments: argparse.Namespace, plan: _Plan, row: _Row, given: str, protocol: Protocol
) -> argparse.Namespace:
    """The command line of the evaluation that a cell is; thresholds are studied where there is one."""
    own = {
        **vars(arguments),
        "dataset": row.asked,
        "protocol": given,
        "data_root": row.root,
        "out": str(plan.folder / cell_name(row.dataset, protocol, arguments)),
    }
    if arguments.thresholds and protocol.rule(row.dataset.name).threshold is None:
        own |= {"thresholds": False, "tune_split": None, "tune_limit": None}
    return argparse.Namespace(**own)


def earlier_result(
    path: Path, weights: str, dataset: SegmentationDataset, protocol: Protocol, arguments: argparse.Namespace
) -> Result | None:
    """The result at ``path`` if it is the one that ``arguments`` would make: of equal weights, protocol, images and
    words, with the studies that are asked for.

    Images are compared by their names; that files of the same names were changed is not seen.
    """
    from segclip.eval.class_words import class_words
    from segclip.eval.datasets.check import quick_check

    try:
        result = Result.read(path)
    except ValueError:
        return None  # none yet, or of another version
    wanted = zip(dataset.classes, class_words(dataset, protocol), strict=True)
    same = (
        result.weights_sha256 == weights
        and result.protocol_sha256 == protocol.sha256
        and result.dataset_check == quick_check(dataset)
        and [(each.name, each.words) for each in result.classes] == list(wanted)
        and (not result.skipped or arguments.skip_broken)
        and _intervals_as_asked(result, arguments)
        and _thresholds_as_asked(result, arguments)
        and _vocabulary_as_asked(result, arguments)
    )
    return result if same else None


def _intervals_as_asked(result: Result, arguments: argparse.Namespace) -> bool:
    if result.intervals is None:
        return result.images < 2 or not arguments.bootstrap
    return (result.intervals.draws, result.intervals.level) == (arguments.bootstrap, arguments.confidence)


def _thresholds_as_asked(result: Result, arguments: argparse.Namespace) -> bool:
    """A study that was made and is not asked for now does no harm; nor does a tuned threshold more."""
    if not arguments.thresholds:
        return True
    if result.thresholds is None:
        return False
    if arguments.tune_split is None:
        return True
    from segclip.eval.datasets.dataset import open_dataset

    tune = open_dataset(arguments.dataset, arguments.data_root, arguments.tune_split).first(
        arguments.tune_limit
    )
    return (result.thresholds.tune_split, result.thresholds.tune_images) == (tune.split, len(tune))


def _vocabulary_as_asked(result: Result, arguments: argparse.Namespace) -> bool:
    if arguments.vocabulary is None:
        return True
    if result.vocabulary is None:
        return False
    from segclip.eval.vocabulary import load_vocabulary

    return result.vocabulary.source_sha256 == load_vocabulary(arguments.vocabulary or None).source_sha256


def matrix_table(cells: Sequence[Cell]) -> Table:
    """Mean IoU in percent: a row a data set, a column a protocol."""
    table = Table(title="mean IoU %", title_justify="left")
    table.add_column("data set")
    protocols = list(dict.fromkeys(cell.protocol for cell in cells))
    for protocol in protocols:
        table.add_column(protocol, justify="right")
    by_place = {(cell.dataset, cell.protocol): cell for cell in cells}
    for dataset in dict.fromkeys(cell.dataset for cell in cells):
        row = [by_place[dataset, protocol].miou for protocol in protocols]
        table.add_row(dataset, *("-" if miou is None else f"{100 * miou:.1f}" for miou in row))
    return table


def _show_and_write(path: Path, cells: Sequence[Cell], weights: str, console: Console) -> None:
    console.print(matrix_table(cells))
    for cell in cells:
        if cell.reason is not None:
            console.print(
                f"- {cell.dataset} under {cell.protocol}: {cell.reason}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
    content: dict[str, Any] = {
        "format": FORMAT, "weights_sha256": weights, "cells": [asdict(cell) for cell in cells],
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    console.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)


def _undefined(dataset: SegmentationDataset, protocol: Protocol, config: ModelSizes) -> str | None:
    """Why the protocol says nothing about the data set or the model; None if it does."""
    from segclip.eval.class_words import class_words

    try:
        class_words(dataset, protocol)
        protocol.geometry(config, dataset.name)
    except ValueError as error:
        return str(error)
    return None


def default_protocol(datasets: Sequence[str]) -> str:
    """The protocol of who names none."""
    return "scenes" if set(datasets) == {"scenes"} else "segclip"


def evaluation_folder(checkpoint: str) -> Path:
    """Where evaluations of a checkpoint go, beside it, if nothing else is said."""
    place = Path(checkpoint)
    return (place.parent if place.is_file() else place) / "evaluation"


def cell_name(dataset: SegmentationDataset, protocol: Protocol, arguments: argparse.Namespace) -> str:
    """A folder's name: another one for each data set, protocol and part of the data set."""
    name = f"{dataset.name}-{protocol.name}"
    if arguments.split != "val":
        name += f"-{arguments.split}"
    return name if arguments.limit is None else f"{name}-first{arguments.limit}"


def _refuse_repeated(kind: str, names: Sequence[str], asked: Sequence[str]) -> None:
    if len(set(names)) != len(asked):
        twice = next((name for number, name in enumerate(names) if name in names[:number]), asked[0])
        raise ValueError(f"two of the {kind} are called {twice!r}; a matrix needs each once")
