"""A result as one HTML file: tables, bars, confusion matrix, images. It needs no network and no other file."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup
from PIL import Image

from segclip.eval.datasets.dataset import SegmentationDataset
from segclip.eval.reports.palette import Colour
from segclip.eval.reports.pictures import MOST_NUMBERS, Chosen, row_shares
from segclip.eval.reports.views import View, class_colours
from segclip.eval.result import Interval, Result

__all__ = ["write_report"]

_MOST_CONFUSIONS = 20
_HIT: Colour = (0, 114, 178)
_MISS: Colour = (213, 94, 0)
# Fields of a result that the page shows in a way of their own.
_SHOWN = {
    "dataset", "miou", "accuracy", "mean_class_accuracy", "boundary_iou", "coverage", "classes", "images", "pixels",
    "skipped", "confusion", "per_image", "protocol", "checkpoint", "thresholds", "vocabulary", "has_background",
    "format", "counts",
}  # fmt: skip


@dataclass(frozen=True)
class _Matrix:
    """The confusion matrix as a picture of one pixel a cell, and the numbers to write and to show on it."""

    names: tuple[str, ...]
    picture: str
    cell: int
    margin: int
    numbers: tuple[tuple[int, int, str], ...]
    shares: tuple[tuple[int, int, float], ...]


def write_report(
    path: str | Path,
    dataset: SegmentationDataset,
    result: Result,
    chosen: Chosen,
    views: Mapping[int, View],
) -> Path:
    """Write the page.

    Args:
        path: the file; its folder is there.
        dataset, result: as given to and returned by ``evaluate``.
        chosen: images to show, by ``choose``.
        views: by ``make_views``, of all that are chosen.
    """
    colours = [_css(colour) for colour in class_colours(dataset)]
    parts = (
        ("worst", "Worst images", "Lowest mean IoU first", chosen.worst),
        ("best", "Best images", "Highest mean IoU first", chosen.best),
        ("even", "Images evenly spaced over the data set", "Chosen by order, not by score", chosen.even),
    )
    text = _template().render(
        result=result,
        title=f"{result.dataset} {result.split}, protocol {result.protocol['name']}",
        figures=_figures(result),
        classes=_class_rows(result, colours),
        matrix=_matrix(result),
        confusions=_confusions(result),
        histogram=_histogram(result),
        galleries=[
            (name, head, remark, [_card(views[number], dataset.classes, colours) for number in numbers])
            for name, head, remark, numbers in parts
            if numbers
        ],
        made_with=_made_with(result),
        protocol=_flat(result.protocol),
    )
    path = Path(path)
    path.write_text(text, encoding="utf-8")
    return path


@lru_cache(maxsize=1)
def _template() -> Template:
    page = Environment(
        loader=PackageLoader("segclip.eval.reports", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page.filters["percent"] = lambda value, digits=1: "-" if value is None else f"{100 * value:.{digits}f}"
    page.filters["grouped"] = lambda value: f"{value:,}"
    return page.get_template("report_template.html")


def _figures(result: Result) -> list[tuple[str, float, Interval | None]]:
    """(name, value, interval) of the figures that there are, the main one first."""
    named = (
        ("mean IoU", "miou"),
        ("pixel accuracy", "accuracy"),
        ("mean class accuracy", "mean_class_accuracy"),
        ("mean boundary IoU", "boundary_iou"),
        ("coverage", "coverage"),
    )
    return [
        (name, value, getattr(result.intervals, key, None))
        for name, key in named
        if (value := getattr(result, key)) is not None
    ]


def _class_rows(result: Result, colours: Sequence[str]) -> list[dict[str, Any]]:
    """One entry a class, in the order of the labels."""
    hits = np.asarray(result.confusion).diagonal().tolist()
    return [
        {
            "number": number,
            "name": each.name,
            "colour": colour,
            "iou": each.iou,
            "interval": each.iou_interval,
            "words": ", ".join(each.words),
            "boundary_iou": each.boundary_iou,
            "accuracy": each.accuracy,
            "precision": hit / each.predicted_pixels if each.predicted_pixels else None,
            "true_share": each.true_pixels / result.pixels,
            "predicted_share": each.predicted_pixels / result.pixels,
        }
        for number, (each, colour, hit) in enumerate(zip(result.classes, colours, hits, strict=True))
    ]


def _matrix(result: Result) -> _Matrix:
    shares = row_shares(result)
    count = len(shares)
    names = tuple(each.name for each in result.classes)
    picture = np.zeros((count, count, 4), dtype=np.uint8)
    picture[..., :3] = _MISS
    picture[np.arange(count), np.arange(count), :3] = _HIT
    # The root lifts the many small shares out of the paper's colour.
    picture[..., 3] = (255 * shares**0.5).round()
    many = count > MOST_NUMBERS
    written = [] if many else np.argwhere((shares >= 0.01) | np.eye(count, dtype=bool)).tolist()
    return _Matrix(
        names,
        _data_uri(Image.fromarray(picture), "png"),
        14 if many else 32,
        7 * min(max(len(name) for name in names), 24) + 16,
        tuple((row, column, f"{100 * shares[row, column]:.0f}") for row, column in written),
        tuple(
            (row, column, round(100 * float(shares[row, column]), 1))
            for row, column in np.argwhere(shares >= 0.0005).tolist()
        ),
    )


def _confusions(result: Result) -> list[dict[str, Any]]:
    """The most frequent mistakes, by pixels."""
    counts = np.asarray(result.confusion)
    shares = row_shares(result)
    wrong = counts * ~np.eye(len(counts), dtype=bool)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_MOST_CONFUSIONS]
    pairs = [divmod(int(place), len(counts)) for place in order]
    return [
        {
            "truth": result.classes[row].name,
            "taken_for": result.classes[column].name,
            "share": float(shares[row, column]),
            "pixels": int(counts[row, column]),
        }
        for row, column in pairs
        if counts[row, column] and row != column
    ]


def _histogram(result: Result, bins: int = 20) -> list[tuple[int, int]]:
    """(lower bound in percent, images) of the images' mean IoU."""
    values = [row.miou for row in result.per_image if row.miou is not None]
    counts, _ = np.histogram(values, bins=bins, range=(0, 1))
    return [(100 * number // bins, int(count)) for number, count in enumerate(counts)]


def _card(view: View, names: Sequence[str], colours: Sequence[str]) -> dict[str, Any]:
    return {
        "key": view.key,
        "miou": view.miou,
        "pictures": [
            (head, _data_uri(picture, "webp"), picture.width, picture.height)
            for head, picture in (
                ("image", view.image),
                ("prediction", view.prediction),
                ("truth", view.truth),
                ("centers", view.regions),
            )
        ],
        "legend": [(names[label], colours[label]) for label in view.labels],
    }


def _data_uri(picture: Image.Image, kind: Literal["png", "webp"]) -> Markup:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"quality": 82, "method": 4} if kind == "webp" else {}))
    return Markup(f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}")


def _made_with(result: Result) -> list[tuple[str, str]]:
    """All fields that the page does not show elsewhere, whichever they are."""
    rest = {key: value for key, value in result.as_dict().items() if key not in _SHOWN}
    lines = [line for line in _flat(rest) if not line[0].endswith((".low", ".high"))]
    return [("checkpoint", result.checkpoint or "-"), *lines]


def _flat(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested mappings as lines of dotted names; long lists are cut."""
    lines: list[tuple[str, str]] = []
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            lines += _flat(value, f"{name}.")
        elif isinstance(value, (list, tuple)):
            shown = [
                ", ".join(map(str, each)) if isinstance(each, (list, tuple)) else str(each) for each in value
            ]
            more = f" … ({len(shown)} in all)" if len(shown) > 200 else ""
            lines.append((name, (" · ".join(shown[:200]) or "-") + more))
        else:
            lines.append((name, "-" if value is None else str(value)))
    return lines


def _css(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
