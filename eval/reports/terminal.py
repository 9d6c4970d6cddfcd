"""A result in the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from segclip.eval.result import Interval, Result

__all__ = ["class_table", "print_result", "remarks", "studies", "summary_line"]

_BAR = 12


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _range(interval: Interval | None) -> str:
    return "-" if interval is None else f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"


def print_result(console: Console, result: Result) -> None:
    """The table of the classes, what speaks against the figures, what was studied, and the figures."""
    console.print(class_table(result))
    for line in (*(f"left out: {line}" for line in result.skipped), *remarks(result)):
        console.print(line, style="yellow", markup=False, soft_wrap=True)
    for line in (*studies(result), summary_line(result)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def class_table(result: Result) -> Table:
    """One row a class, best IoU first, with a bar; the mean at the foot."""
    table = Table(
        title=f"{escape(result.dataset)} · protocol {result.protocol['name']} · {result.images} images",
        show_footer=True,
        title_justify="left",
    )
    table.add_column("class", footer="mean")
    table.add_column("IoU %", justify="right", footer=_percent(result.miou))
    table.add_column("", min_width=_BAR)
    with_intervals = any(each.iou_interval is not None for each in result.classes)
    if with_intervals and result.intervals is not None:
        table.add_column(
            f"{100 * result.intervals.level:g} %",
            justify="right",
            footer=_range(result.intervals.miou),
        )
    table.add_column("found %", justify="right", footer=_percent(result.mean_class_accuracy))
    table.add_column("pixels %", justify="right", footer="100.0")
    for each in sorted(result.classes, key=lambda row: -1 if row.iou is None else row.iou, reverse=True):
        length = round(_BAR * (each.iou or 0))
        table.add_row(
            escape(each.name),
            _percent(each.iou),
            "█" * length + "·" * (_BAR - length),
            *([_range(each.iou_interval)] if with_intervals else []),
            _percent(each.accuracy),
            f"{100 * each.true_pixels / result.pixels:.1f}",
        )
    return table


def summary_line(result: Result) -> str:
    """The figures to quote, on one line."""
    spread = ""
    if result.intervals is not None:
        bounds = result.intervals.miou
        spread = f" ({100 * result.intervals.level:g} %: {bounds.low:.4f} to {bounds.high:.4f})"
    speed = result.images_per_second
    skipped = f", {len(result.skipped)} images could not be read" if result.skipped else ""
    return (
        f"mIoU {result.miou:.4f}{spread}, pixel accuracy {result.accuracy:.4f} over {result.images} images "
        f"({speed:.{0 if speed >= 10 else 1}f} images/s on {result.device}{skipped})"
    )


def remarks(result: Result) -> list[str]:
    """What speaks against comparing the score with others."""
    return list(result.dataset_check.warnings)


def studies(result: Result) -> list[str]:
    """What was found besides the main figures, a line each."""
    lines = []
    found = result.thresholds
    if found is not None:
        lines.append(
            f"background threshold {found.fixed.threshold:g} (protocol): mIoU {found.fixed.miou:.4f}"
        )
        if found.tuned is not None:
            lines.append(
                f"background threshold {found.tuned.threshold:g} (tuned on {found.tune_images} images of "
                f"{found.tune_split}): mIoU {found.tuned.miou:.4f}"
            )
        lines.append(
            f"background threshold {found.oracle.threshold:g} (oracle, chosen on the scored images: a bound and no "
            f"score): mIoU {found.oracle.miou:.4f}"
        )
    if result.vocabulary is not None:
        for variant in result.vocabulary.variants:
            taken = f", which got {100 * variant.taken:.1f} % of the pixels" if variant.added else ""
            words = f"{len(variant.added)} words" if variant.added else f"{len(variant.replaced)} classes"
            lines.append(f"{variant.name} ({words}{taken}): mIoU {variant.miou:.4f}")
    return lines
