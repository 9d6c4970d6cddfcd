"""``segclip-eval compare``: whether one of two results is better by more than chance.

Both results must be of the same images under the same protocol. The images are drawn again as for confidence intervals,
the same ones for both at each draw: what makes images hard makes them hard for both, so the difference varies far less
than either score.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.table import Table

    from segclip.eval.counts import ImageCounts
    from segclip.eval.result import Interval, Result

__all__ = ["ClassDifference", "Comparison", "build_parser", "check_comparable", "compare", "run"]

Sign = Literal["+", "-", "="]


@dataclass(frozen=True)
class ClassDifference:
    """IoU of one class in both results; None where the class has no pixel."""

    name: str
    first: float | None
    second: float | None
    difference: float | None
    interval: Interval | None
    sign: Sign


@dataclass(frozen=True)
class Comparison:
    """The second result against the first.

    Attributes:
        first, second: mean IoU of each.
        difference: the second's less the first's.
        interval: of the difference; None without draws that have one.
        sign: ``+`` if the whole interval is above 0, ``-`` if below, ``=`` if 0 is in it.
        better: part of the draws in which the second is better; draws in which both are equal count half.
        level, draws, seed: of the bootstrap.
        images: that both were scored on.
        classes: one entry a class.
        protocols: names, where they differ.
    """

    first: float
    second: float
    difference: float
    interval: Interval | None
    sign: Sign
    better: float
    level: float
    draws: int
    seed: int
    images: int
    classes: tuple[ClassDifference, ...]
    protocols: tuple[str, str] | None = None


def check_comparable(first: Result, second: Result, *, any_protocol: bool = False) -> None:
    """Refuse to compare what is not of the same images and classes.

    Args:
        any_protocol: let the protocols differ.

    Raises:
        ValueError: says what differs.
    """
    for what, one, other in (
        ("data sets", first.dataset, second.dataset),
        ("splits", first.split, second.split),
    ):
        if one != other:
            raise ValueError(f"the results are of different {what}: {one!r} and {other!r}")
    names = [each.name for each in first.classes], [each.name for each in second.classes]
    if names[0] != names[1] or first.has_background != second.has_background:
        raise ValueError(
            f"the results are of different classes: {len(names[0])} and {len(names[1])}, first difference "
            f"{next((pair for pair in zip(*names, strict=False) if pair[0] != pair[1]), ('background', 'none'))}"
        )
    keys = [{image.key for image in result.per_image} for result in (first, second)]
    if keys[0] != keys[1]:
        odd = sorted(keys[0] ^ keys[1])
        raise ValueError(
            f"the results are of different images: {len(keys[0])} and {len(keys[1])}, {len(odd)} of them in one only "
            f"(first: {odd[0]!r})"
        )
    if first.data_sha256 != second.data_sha256:
        raise ValueError(
            "the results are of images of the same names but other files: "
            f"SHA-256 {first.data_sha256[:12]} and {second.data_sha256[:12]}"
        )
    if first.protocol_sha256 != second.protocol_sha256 and not any_protocol:
        one, other = first.protocol["name"], second.protocol["name"]
        said = f"{one!r} and {other!r}" if one != other else f"two of the name {one!r}"
        raise ValueError(f"the results are of different protocols: {said}; --anyway compares them")


def compare(
    first: tuple[Result, ImageCounts],
    second: tuple[Result, ImageCounts],
    *,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    any_protocol: bool = False,
) -> Comparison:
    """The second against the first, by the paired bootstrap over images.

    Args:
        first, second: results with the counts of their images.
        draws, level, seed: of the bootstrap, see ``segclip.eval.bootstrap``.
        any_protocol: let the protocols differ.

    Raises:
        ValueError: they are not of the same images, or the settings make no interval.
    """
    import numpy as np

    from segclip.eval.bootstrap import Resampling, figures, interval, per_image_sums

    check_comparable(first[0], second[0], any_protocol=any_protocol)
    resampling = Resampling(draws=draws, level=level, seed=seed)
    if not draws:
        raise ValueError("a comparison needs bootstrap draws, 100 at least")
    background = first[0].has_background
    whole, drawn = [], []
    for _, counts in (first, second):
        sums = np.asarray(per_image_sums(counts, background).sum(axis=0))
        whole.append(figures(sums, counts.classes))
        drawn.append(resampling.draw(counts, background))
    assert drawn[0] is not None
    assert drawn[1] is not None
    miou_D = drawn[1].miou_D - drawn[0].miou_D
    spread = interval(miou_D, level)
    known = miou_D[~np.isnan(miou_D)]
    iou = [each.iou_DC[0] for each in whole]
    classes = []
    for number, each in enumerate(first[0].classes):
        bounds = interval(drawn[1].iou_DC[:, number] - drawn[0].iou_DC[:, number], level)
        one, other = (None if np.isnan(values[number]) else float(values[number]) for values in iou)
        difference = None if one is None or other is None else other - one
        classes.append(ClassDifference(each.name, one, other, difference, bounds, _sign(bounds)))
    protocols = (first[0].protocol["name"], second[0].protocol["name"])
    return Comparison(
        first=first[0].miou,
        second=second[0].miou,
        difference=second[0].miou - first[0].miou,
        interval=spread,
        sign=_sign(spread),
        better=float(((known > 0) + 0.5 * (known == 0)).mean()) if len(known) else 0.5,
        level=level,
        draws=draws,
        seed=seed,
        images=len(first[1].keys),
        classes=tuple(classes),
        protocols=None if first[0].protocol_sha256 == second[0].protocol_sha256 else protocols,
    )


def _sign(bounds: Interval | None) -> Sign:
    if bounds is None or bounds.low <= 0 <= bounds.high:
        return "="
    return "+" if bounds.low > 0 else "-"


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="segclip-eval compare",
        description="Say whether the second of two results is better than the first by more than chance.",
    )
    parser.add_argument("first", metavar="A", help="result.json, or the folder it lies in")
    parser.add_argument("second", metavar="B", help="another one, of the same images")
    parser.add_argument("--anyway", action="store_true", help="compare results of different protocols, too")
    parser.add_argument("--bootstrap", type=int, default=1000, metavar="N", help="draws (default: 1000)")
    parser.add_argument(
        "--confidence", type=float, default=0.95, metavar="P", help="level of the intervals (default: 0.95)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws (default: 0)")
    parser.add_argument("--json", metavar="FILE", help="also write the comparison as JSON")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Print the comparison."""
    from rich.console import Console

    from segclip.eval.result import Result

    read = []
    for path in (arguments.first, arguments.second):
        result = Result.read(path)
        read.append((result, path))
    check_comparable(read[0][0], read[1][0], any_protocol=arguments.anyway)
    found = compare(
        (read[0][0], read[0][0].load_counts(read[0][1])),
        (read[1][0], read[1][0].load_counts(read[1][1])),
        draws=arguments.bootstrap,
        level=arguments.confidence,
        seed=arguments.seed,
        any_protocol=arguments.anyway,
    )
    console = Console()
    console.print(_table(found))
    for line in _lines(found):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if arguments.json is not None:
        Path(arguments.json).write_text(
            json.dumps(asdict(found), indent=1, allow_nan=False) + "\n", encoding="utf-8"
        )
    return 0


def _table(found: Comparison) -> Table:
    from rich.table import Table

    table = Table(title_justify="left", title=f"IoU % by class, {found.images} images")
    table.add_column("class")
    for head in ("A", "B", "B - A", f"{100 * found.level:g} % interval"):
        table.add_column(head, justify="right")
    table.add_column("")
    for each in sorted(found.classes, key=lambda row: -1 if row.difference is None else -abs(row.difference)):
        table.add_row(
            each.name,
            _percent(each.first),
            _percent(each.second),
            _percent(each.difference, sign=True),
            _bounds(each.interval),
            each.sign,
        )
    return table


def _lines(found: Comparison) -> list[str]:
    verdict = {
        "+": "B is better by more than chance",
        "-": "A is better by more than chance",
        "=": "no difference beyond chance",
    }[found.sign]
    lines = []
    if found.protocols is not None:
        lines.append(f"the protocols differ ({' and '.join(found.protocols)}): the difference is theirs, too")
    lines.append(
        f"mIoU {found.first:.4f} and {found.second:.4f}: B - A {_percent(found.difference, sign=True)} points "
        f"({100 * found.level:g} %: {_bounds(found.interval)}); B is better in {100 * found.better:.1f} % of "
        f"{found.draws} draws: {verdict}"
    )
    return lines


def _percent(value: float | None, *, sign: bool = False) -> str:
    if value is None:
        return "-"
    return f"{100 * value:+.2f}" if sign else f"{100 * value:.2f}"


def _bounds(bounds: Interval | None) -> str:
    return "-" if bounds is None else f"{100 * bounds.low:+.2f} to {100 * bounds.high:+.2f}"
