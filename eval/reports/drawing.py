"""Drawing label maps over pictures: tinted regions with outlines, and the word on each region."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage  # type: ignore[import-untyped,unused-ignore]

from segclip.eval.datasets.dataset import IGNORE
from segclip.eval.reports.palette import Colour, readable_on

__all__ = ["INK", "PAPER", "enlarge", "font", "legend", "overlay", "save_label_png"]

INK: Colour = (28, 28, 30)
PAPER: Colour = (255, 255, 255)
_GREY: Colour = (128, 128, 128)
_SMALLEST_TEXT = 11


@lru_cache(maxsize=64)
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and holds Latin, Greek and Cyrillic letters."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def scale_for(height: int, width: int, side: int) -> float:
    """Factor that brings the longer side to ``side``."""
    return side / max(height, width)


def enlarge(image_HW3: NDArray[np.uint8], side: int) -> Image.Image:
    """The picture with its longer side at ``side`` pixels, smoothly."""
    factor = scale_for(image_HW3.shape[0], image_HW3.shape[1], side)
    size = (max(round(image_HW3.shape[1] * factor), 1), max(round(image_HW3.shape[0] * factor), 1))
    return Image.fromarray(image_HW3).resize(size, Image.Resampling.LANCZOS)


def _enlarge_labels(label_HW: NDArray[np.integer], size: tuple[int, int]) -> NDArray[np.int32]:
    picture = Image.fromarray(label_HW.astype(np.int32)).resize(size, Image.Resampling.NEAREST)
    return np.asarray(picture, dtype=np.int32)


def overlay(
    image_HW3: NDArray[np.uint8],
    label_HW: NDArray[np.integer],
    names: Sequence[str],
    colours: Sequence[Colour],
    *,
    side: int = 320,
    strength: float = 0.6,
    words: bool = True,
    untouched: Sequence[int] = (),
    ignore: int | None = IGNORE,
) -> Image.Image:
    """The picture with every region tinted in its label's colour, outlined, and named.

    Args:
        image_HW3: the picture, uint8.
        label_HW: label of each pixel; may be smaller than the picture, which it is stretched over.
        names, colours: by label.
        side: length of the result's longer side.
        strength: how much of the tint covers the picture, 0 to 1.
        words: write each region's name on it where there is room.
        untouched: labels that are not tinted (background).
        ignore: label that is hatched grey; None where every value is a label with a name.
    """
    picture = enlarge(image_HW3, side)
    labels = _enlarge_labels(label_HW, picture.size)
    table = np.zeros((max(len(names), (ignore or 0) + 1), 3), dtype=np.float32)
    table[: len(colours)] = np.asarray(colours[: len(table)], dtype=np.float32)
    if ignore is not None:
        table[ignore] = _GREY
    plain = np.isin(labels, list(untouched))
    # On a pale grey copy of the picture the tints keep their own colour, whatever lies beneath.
    pixels = np.asarray(picture, dtype=np.float32)
    grey = (pixels @ np.array([0.299, 0.587, 0.114], dtype=np.float32))[..., None]
    mixed = (1 - strength) * (0.75 * grey + 0.25 * pixels) + strength * table[labels]
    mixed[plain] = 0.55 * pixels[plain] + 0.45 * 255
    if ignore is not None:
        rows, columns = np.indices(labels.shape)
        mixed[(labels == ignore) & ((rows + columns) % 8 < 2)] = 255
    mixed[_outline(labels, side // 500)] = INK
    result = Image.fromarray(mixed.clip(0, 255).astype(np.uint8))
    if words:
        skipped = {*untouched, ignore}
        _write_names(
            result, labels, [(k, names[k]) for k in np.unique(labels).tolist() if k not in skipped], colours
        )
    return result


def _outline(labels: NDArray[np.int32], width: int) -> NDArray[np.bool_]:
    edge = np.zeros(labels.shape, dtype=bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    return np.asarray(ndimage.binary_dilation(edge, iterations=width // 2) if width > 1 else edge)


def _write_names(
    picture: Image.Image,
    labels: NDArray[np.int32],
    wanted: Sequence[tuple[int, str]],
    colours: Sequence[Colour],
) -> None:
    """Each region's name on a tag where the region is widest.

    Small regions choose first; larger ones have more room to keep clear of their tags.
    """
    smallest = 0.004 * labels.size
    regions: list[tuple[int, tuple[slice, slice], NDArray[np.bool_], int, str]] = []
    for label, name in wanted:
        pieces, _ = ndimage.label(labels == label)
        sizes = np.bincount(pieces.ravel())
        for piece, box in enumerate(ndimage.find_objects(pieces), start=1):
            if sizes[piece] >= smallest:
                regions.append((int(sizes[piece]), box, pieces[box] == piece, label, name))
    draw = ImageDraw.Draw(picture)
    largest = max(8 + 0.5 * min(picture.size) ** 0.5, _SMALLEST_TEXT)
    free = np.ones(labels.shape, dtype=bool)
    taken: list[tuple[float, float, float, float]] = []
    for _, box, inside, label, name in sorted(regions, key=lambda region: region[0]):
        # Padding: the border of the picture bounds a region too.
        depths = ndimage.distance_transform_edt(np.pad(inside & free[box], 1))[1:-1, 1:-1]
        row, column = divmod(int(depths.argmax()), depths.shape[1])
        size = int(np.clip(depths.max() * 0.4, max(0.7 * largest, _SMALLEST_TEXT), largest))
        x, y = column + box[1].start, row + box[0].start
        tag = next(
            (
                each
                for shift in (0, -1.6, 1.6)
                if (each := _tag_box(draw, name, size, x, y + shift * size, picture.size)) is not None
                and not any(_overlap(each, other) for other in taken)
            ),
            None,
        )
        if tag is None:
            continue
        taken.append(tag)
        free[int(tag[1]) : int(tag[3]) + 2, int(tag[0]) : int(tag[2]) + 2] = False
        draw.rounded_rectangle(tag, radius=size // 3, fill=colours[label], outline=INK, width=1)
        centre = ((tag[0] + tag[2]) / 2, (tag[1] + tag[3]) / 2)
        draw.text(centre, name, font=font(size, bold=True), fill=readable_on(colours[label]), anchor="mm")


def _tag_box(
    draw: ImageDraw.ImageDraw, name: str, size: int, x: float, y: float, picture: tuple[int, int]
) -> tuple[float, float, float, float] | None:
    """A box for ``name`` centred on (x, y), moved inside the picture; None where that is too narrow."""
    width = draw.textlength(name, font=font(size, bold=True)) + 0.8 * size
    height = 1.5 * size
    if width > picture[0] - 2 or height > picture[1] - 2:
        return None
    left = min(max(x - width / 2, 1), picture[0] - width - 1)
    top = min(max(y - height / 2, 1), picture[1] - height - 1)
    return left, top, left + width, top + height


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def legend(names: Sequence[str], colours: Sequence[Colour], width: int, *, text: int = 15) -> Image.Image:
    """Swatches with names in as many columns as fit into ``width`` pixels."""
    letters = font(text)
    cell = int(max(letters.getlength(name) for name in names) + 3.2 * text)
    columns = max(min(width // cell, len(names)), 1)
    rows = -(-len(names) // columns)
    step = int(1.7 * text)
    picture = Image.new("RGB", (width, rows * step + text // 2), PAPER)
    draw = ImageDraw.Draw(picture)
    for number, (name, colour) in enumerate(zip(names, colours, strict=True)):
        column, row = divmod(number, rows)
        x, y = column * cell, row * step + text // 4
        draw.rounded_rectangle((x, y, x + 1.5 * text, y + 1.2 * text), radius=3, fill=colour, outline=INK)
        draw.text((x + 2 * text, y + 0.6 * text), name, font=letters, fill=INK, anchor="lm")
    return picture


def save_label_png(label_HW: NDArray[np.integer], colours: Sequence[Colour], path: Path) -> Path:
    """Label map as a PNG: a palette image whose indices are the labels, with colours only for looking at.

    Above 256 labels a grey image of 16 bits, which every reader of label maps knows, too.

    Raises:
        ValueError: more than 65,536 labels.
    """
    largest = max(int(label_HW.max(initial=0)), len(colours) - 1)
    if largest > 65535:
        raise ValueError(f"label {largest} does not fit into a PNG of 16 bits")
    if largest > 255:
        Image.fromarray(label_HW.astype(np.uint16)).save(path)
        return path
    picture = Image.fromarray(label_HW.astype(np.uint8))
    flat = [channel for colour in colours for channel in colour]
    picture.putpalette(flat + [0] * (768 - len(flat)))
    picture.save(path)
    return path
