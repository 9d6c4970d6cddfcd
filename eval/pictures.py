"""Pictures of a result: a page of overlays, the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from segclip.eval.datasets import SegmentationDataset
from segclip.eval.drawing import INK, PAPER, enlarge, font, legend, overlay
from segclip.eval.evaluate import Result, predict_dataset
from segclip.eval.metrics import confusion_matrix, mean_iou
from segclip.eval.palette import Colour, named_colours
from segclip.eval.protocol import Protocol
from segclip.models.segclip import SegCLIP

__all__ = ["confusion_picture", "overlay_page", "spread", "write_pictures"]

_CELL = 300
_GAP = 14
_MARGIN = 24
_MOST_NUMBERS = 26  # above this many classes the cells are too small for numbers


def spread(total: int, count: int) -> list[int]:
    """``count`` places evenly spaced over ``total``: chosen by order, not by how well they came out."""
    count = min(count, total)
    return [number * total // count for number in range(count)]


def write_pictures(
    folder: str | Path,
    model: SegCLIP,
    dataset: SegmentationDataset,
    protocol: Protocol,
    result: Result,
    *,
    count: int = 8,
) -> dict[str, Path]:
    """Write ``overlays.png``, ``worst.png`` and ``confusion.png`` into ``folder``.

    Args:
        folder: made if it is not there.
        model, dataset, protocol, result: as given to and returned by ``evaluate``.
        count: images on each page of overlays; 0 writes the confusion matrix alone.

    Returns:
        The files by their name without ending.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = {"confusion": confusion_picture(result, folder / "confusion.png")}
    scored = [
        number for number, key in enumerate(dataset.keys) if key in {row.key for row in result.per_image}
    ]
    if not count or not scored:
        return written
    by_key = {row.key: row.miou if row.miou is not None else 1.0 for row in result.per_image}
    worst = sorted(scored, key=lambda number: by_key[dataset.keys[number]])[:count]
    pages = {
        "overlays": (
            [scored[number] for number in spread(len(scored), count)],
            "images evenly spaced over the data set",
        ),
        "worst": (worst, "the images with the lowest mean IoU"),
    }
    for name, (numbers, which) in pages.items():
        page = overlay_page(
            model,
            dataset,
            protocol,
            numbers,
            title=f"{dataset.name}: mean IoU {100 * result.miou:.1f} %",
            subtitle=which,
        )
        page.save(folder / f"{name}.png")
        written[name] = folder / f"{name}.png"
    return written


def overlay_page(
    model: SegCLIP,
    dataset: SegmentationDataset,
    protocol: Protocol,
    numbers: Sequence[int],
    *,
    title: str,
    subtitle: str = "",
) -> Image.Image:
    """Rows of image | predicted regions with their words | truth, and a legend of the classes that occur."""
    names = dataset.classes
    colours = class_colours(dataset)
    chosen = dataset.pick(numbers)
    rows: list[tuple[str, list[Image.Image]]] = []
    seen: set[int] = set()
    untouched = (0,) if dataset.has_background else ()
    for sample, prediction in predict_dataset(model, chosen, protocol):
        found_HW = prediction.labels().cpu()
        truth_HW = sample.label_HW
        counts = confusion_matrix(torch.from_numpy(truth_HW), found_HW, len(names))
        seen |= set(np.unique(truth_HW[truth_HW < len(names)]).tolist()) | set(found_HW.unique().tolist())
        cells = [
            enlarge(sample.image_HW3, _CELL),
            overlay(sample.image_HW3, found_HW.numpy(), names, colours, side=_CELL, untouched=untouched),
            overlay(sample.image_HW3, truth_HW, names, colours, side=_CELL, untouched=untouched),
        ]
        rows.append((f"{sample.key} · mean IoU {100 * mean_iou(counts):.0f} %", cells))
    across = 2 if len(rows) > 3 else 1
    return _page(
        title, subtitle, rows, ("image", "prediction", "truth"), across, sorted(seen), names, colours
    )


def class_colours(dataset: SegmentationDataset) -> tuple[Colour, ...]:
    """A colour for each class; background is grey."""
    if dataset.has_background:
        return ((200, 200, 200), *named_colours(dataset.classes[1:]))
    return named_colours(dataset.classes)


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


def confusion_picture(result: Result, path: Path) -> Path:
    """Which class was taken for which: each row is a true class, its cells sum to 100 %."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    counts = np.asarray(result.confusion, dtype=np.float64)
    names = [each.name for each in result.classes]
    total = counts.sum(axis=1, keepdims=True)
    share = np.divide(100 * counts, total, out=np.zeros_like(counts), where=total > 0)
    count = len(names)
    cell = 0.52 if count <= _MOST_NUMBERS else 0.22
    inches = max(cell * count, 2.5)
    figure = Figure(figsize=(inches + 3.2, inches + 2.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(share, cmap="cividis", vmin=0, vmax=100)
    size = 10 if count <= _MOST_NUMBERS else 7
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
    axes.set_xticks(np.arange(count + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(count + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=0.4)
    axes.tick_params(which="minor", length=0)
    if count <= _MOST_NUMBERS:
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
