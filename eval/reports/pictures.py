"""Pictures of a result: a page of overlays, the confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from segclip.eval.datasets.dataset import SegmentationDataset
from segclip.eval.reports.drawing import INK, PAPER, font, legend
from segclip.eval.reports.palette import Colour
from segclip.eval.reports.views import View, class_colours
from segclip.eval.result import Result

__all__ = [
    "MOST_NUMBERS", "Chosen", "choose", "confusion_picture", "overlay_page", "row_shares", "spread", "write_pictures",
]  # fmt: skip

_GAP = 14
_MARGIN = 24
MOST_NUMBERS = 26
"""Above this many classes the cells of a confusion matrix are too small for numbers."""


def spread(total: int, count: int) -> list[int]:
    """``count`` places evenly spaced over ``total``: chosen by order, not by how well they came out."""
    count = min(count, total)
    return [number * total // count for number in range(count)]


@dataclass(frozen=True)
class Chosen:
    """Images of a data set to look at, by their places in it.

    Attributes:
        even: evenly spaced over the data set.
        worst: those with the lowest mean IoU, lowest first.
        best: those with the highest that are not among the worst, highest first.
    """

    even: tuple[int, ...]
    worst: tuple[int, ...]
    best: tuple[int, ...]

    def all(self) -> tuple[int, ...]:
        """Each once."""
        return tuple(dict.fromkeys(self.even + self.worst + self.best))


def choose(dataset: SegmentationDataset, result: Result, count: int) -> Chosen:
    """``count`` images of each kind, of those that were scored."""
    by_key = {row.key: row.miou for row in result.per_image}
    scored = [number for number, key in enumerate(dataset.keys) if key in by_key]
    if not count or not scored:
        return Chosen((), (), ())
    rated = [(miou, number) for number in scored if (miou := by_key[dataset.keys[number]]) is not None]
    worst = [number for _, number in sorted(rated)[:count]]
    best = [number for _, number in sorted(rated, key=lambda item: (-item[0], item[1]))]
    return Chosen(
        tuple(scored[number] for number in spread(len(scored), count)),
        tuple(worst),
        tuple([number for number in best if number not in worst][:count]),
    )


def write_pictures(
    folder: str | Path,
    dataset: SegmentationDataset,
    result: Result,
    chosen: Chosen,
    views: Mapping[int, View],
) -> dict[str, Path]:
    """Write ``confusion.png`` and, of the chosen images, ``overlays.png`` and ``worst.png`` into ``folder``.

    Args:
        folder: made if it is not there.
        dataset, result: as given to and returned by ``evaluate``.
        chosen: by ``choose``.
        views: by ``make_views``, of all that are chosen.

    Returns:
        The files by their name without ending.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = {"confusion": confusion_picture(result, folder / "confusion.png")}
    for name, numbers, which in (
        ("overlays", chosen.even, "images evenly spaced over the data set"),
        ("worst", chosen.worst, "the images with the lowest mean IoU"),
    ):
        if not numbers:
            continue
        page = overlay_page(
            [views[number] for number in numbers],
            dataset,
            title=f"{dataset.name}: mean IoU {100 * result.miou:.1f} %",
            subtitle=which,
        )
        page.save(folder / f"{name}.png")
        written[name] = folder / f"{name}.png"
    return written


def overlay_page(
    views: Sequence[View], dataset: SegmentationDataset, *, title: str, subtitle: str = ""
) -> Image.Image:
    """Rows of image | predicted regions with their words | truth, and a legend of the classes that occur."""
    names, colours = dataset.classes, class_colours(dataset)
    rows: list[tuple[str, list[Image.Image]]] = []
    for view in views:
        score = "no pixel counts" if view.miou is None else f"mean IoU {100 * view.miou:.0f} %"
        cells = [view.image, view.prediction, view.truth]
        rows.append((f"{view.key} · {score}", cells))
    seen = sorted({label for view in views for label in view.labels})
    across = 2 if len(rows) > 3 else 1
    return _page(title, subtitle, rows, ("image", "prediction", "truth"), across, seen, names, colours)


def _page(
    title: str,
    subtitle: str,
    rows: Sequence[tuple[str, list[Image.Image]]],
    heads: Sequence[str],
    across: int,
    labels: Sequence[int],
    names: Sequence[str],
    colours: Sequence[Colour],
) -> Image.Image:
    """Lay the rows out in ``across`` columns under a title, with the legend below."""
    widths = [max(cells[number].width for _, cells in rows) for number in range(len(heads))]
    block = sum(widths) + _GAP * (len(heads) - 1)
    high = max(cell.height for _, cells in rows for cell in cells) + 30
    width = across * block + (across - 1) * 3 * _GAP + 2 * _MARGIN
    lines = -(-len(rows) // across)
    key = legend([names[k] for k in labels], [colours[k] for k in labels], width - 2 * _MARGIN, text=17)
    top = _MARGIN + 66 + 28
    page = Image.new("RGB", (width, top + lines * (high + _GAP) + key.height + _MARGIN), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((_MARGIN, _MARGIN), title, font=font(28, bold=True), fill=INK)
    draw.text((_MARGIN, _MARGIN + 38), subtitle, font=font(17), fill=(90, 90, 95))
    for column in range(min(across, len(rows))):
        x = _MARGIN + column * (block + 3 * _GAP)
        for number, head in enumerate(heads):
            draw.text((x, top - 26), head, font=font(18, bold=True), fill=INK)
            x += widths[number] + _GAP
    for number, (caption, cells) in enumerate(rows):
        line, column = divmod(number, across)
        x, y = _MARGIN + column * (block + 3 * _GAP), top + line * (high + _GAP)
        tallest = max(cell.height for cell in cells)
        for cell, cell_width in zip(cells, widths, strict=True):
            page.paste(cell, (x, y))
            x += cell_width + _GAP
        draw.text(
            (_MARGIN + column * (block + 3 * _GAP), y + tallest + 5),
            caption,
            font=font(14),
            fill=(90, 90, 95),
        )
    page.paste(key, (_MARGIN, page.height - key.height - _MARGIN // 2))
    return page


def row_shares(result: Result) -> NDArray[np.float64]:
    """Part of each true class's pixels that went to each class, [C, C]; 0 for a class without any."""
    counts = np.asarray(result.confusion, dtype=np.float64)
    total = counts.sum(axis=1, keepdims=True)
    return np.asarray(np.divide(counts, total, out=np.zeros_like(counts), where=total > 0))


def confusion_picture(result: Result, path: Path) -> Path:
    """Which class was taken for which: each row is a true class, its cells sum to 100 %."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names, share = [each.name for each in result.classes], 100 * row_shares(result)
    count = len(names)
    cell = 0.52 if count <= MOST_NUMBERS else 0.14
    inches = max(cell * count, 2.5)
    figure = Figure(figsize=(inches + 3.2, inches + 2.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(share, cmap="cividis", vmin=0, vmax=100, interpolation="nearest")
    size = 10 if count <= MOST_NUMBERS else 6
    axes.set_xticks(range(count), names, rotation=55, ha="right", rotation_mode="anchor", fontsize=size)
    axes.set_yticks(range(count), names, fontsize=size)
    axes.set_xlabel("predicted", fontsize=12)
    axes.set_ylabel("true", fontsize=12)
    axes.set_title(
        f"{result.dataset}: where the pixels of each class went\nmean IoU {100 * result.miou:.1f} %, "
        f"pixel accuracy {100 * result.accuracy:.1f} %",
        fontsize=12,
        loc="left",
    )
    # Two collections of lines: a grid of minor ticks takes ten seconds to lay out at 171 classes.
    edges = np.arange(count + 1) - 0.5
    axes.hlines(edges, edges[0], edges[-1], color="white", linewidth=0.4)
    axes.vlines(edges, edges[0], edges[-1], color="white", linewidth=0.4)
    if count <= MOST_NUMBERS:
        for row in range(count):
            for column in range(count):
                if share[row, column] >= 1 or row == column:
                    colour = "black" if share[row, column] > 55 else "white"
                    axes.text(
                        column,
                        row,
                        f"{share[row, column]:.0f}",
                        ha="center",
                        va="center",
                        fontsize=8,
                        color=colour,
                    )
    figure.colorbar(image, ax=axes, shrink=0.6, label="% of the true class's pixels")
    figure.savefig(path)
    return path
