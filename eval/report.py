"""A result as a table in the terminal."""

from __future__ import annotations

from rich.table import Table

from segclip.eval.evaluate import Result

__all__ = ["class_table", "remarks", "studies", "summary_line"]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def class_table(result: Result) -> Table:
    """One row a class, best IoU first, with a bar; the mean at the foot."""
    table = Table(
        title=f"{result.dataset} · protocol {result.protocol['name']} · {result.images} images",
        show_footer=True,
        title_justify="left",
    )
    table.add_column("class", footer="mean")
    table.add_column("IoU %", justify="right", footer=_percent(result.miou))
    table.add_column("", min_width=20)
    table.add_column("found %", justify="right", footer=_percent(result.mean_class_accuracy))
    table.add_column("share of pixels %", justify="right", footer="100.0")
    for each in sorted(result.classes, key=lambda row: -1 if row.iou is None else row.iou, reverse=True):
        length = round(20 * (each.iou or 0))
        table.add_row(
            each.name,
            _percent(each.iou),
            "█" * length + "·" * (20 - length),
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
    skipped = f", {len(result.skipped)} images could not be read" if result.skipped else ""
    return (
        f"mIoU {result.miou:.4f}{spread}, pixel accuracy {result.accuracy:.4f} over {result.images} images "
        f"({result.images_per_second:.0f} images/s on {result.device}{skipped})"
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
