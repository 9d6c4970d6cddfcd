"""Drawings of how the kernels cut their work into tiles, with the kernels' own sizes.

    python -m docs.make.tiling FOLDER

Each shows the largest configuration that is tried first, for 196 patches and 8 centers of width 768.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from docs.make.drawing import Drawing
from segclip.kernels import contrastive_triton, patch_assignment_triton, superpixel_kl_triton
from segclip.kernels.triton_common import block_of_centers

__all__ = ["DRAWINGS"]

PATCHES, CENTERS, WIDTH = 196, 8, 768
MATRIX = (1.1, 0.32)
"""Pixels a patch and pixels a channel, in drawings of patches by channels."""
WHOLE, TILE, HOT, EDGE = "#eef2f6", "#bcd9ee", "#f2a65a", "#8a97a3"


def assignment() -> str:
    """SVG of ``patch_assignment``, forward."""
    drawing = Drawing(1000, 380, "Tiles of the patch assignment")
    _assign(drawing, 20)
    _regions(drawing, 540)
    return drawing.svg()


def _assign(drawing: Drawing, left: float) -> None:
    """The kernel ``_assign``."""
    tile = patch_assignment_triton._assign.all_configs[0].kwargs
    down, across = MATRIX
    tall, wide = PATCHES * down, WIDTH * across
    _title(drawing, left, "_assign: a program has a tile of patches of one sample")
    x, y = left + 40, 80.0
    _matrix(drawing, x, y, wide, tall, f"keys k: {PATCHES} patches by {WIDTH} channels")
    count = -(-PATCHES // tile["BLOCK_L"])
    for number in range(count):
        top = y + number * tile["BLOCK_L"] * down
        height = min(tile["BLOCK_L"] * down, y + tall - top)
        drawing.box(x, top, wide, height, TILE if number == 1 else "none", EDGE)
    top = y + tile["BLOCK_L"] * down
    step = tile["BLOCK_C"] * across
    drawing.box(x + 3 * step, top, step, tile["BLOCK_L"] * down, HOT, EDGE)
    drawing.text(
        x + wide / 2,
        y + tall + 18,
        f"{count} programs a sample; each walks the channels, {tile['BLOCK_C']} at a time",
        size=12,
    )
    u = x + wide + 50
    drawing.arrow((x + wide + 6, top + 35), (u - 6, top + 35), head=True)
    drawing.text(x + wide + 25, top + 22, "q · k", size=12)
    drawing.box(u, top, 44, tile["BLOCK_L"] * down, TILE, EDGE)
    drawing.text(u + 22, top - 26, "logits, noise,", size=12)
    drawing.text(u + 22, top - 11, "softmax: on chip", size=12)
    drawing.text(
        u + 22, top + tile["BLOCK_L"] * down + 14, f"{tile['BLOCK_L']} x {block_of_centers(CENTERS)}", size=12
    )
    drawing.arrow((u + 50, top + 35), (u + 78, top + 35))
    drawing.box(u + 82, top, 10, tile["BLOCK_L"] * down, HOT, EDGE)
    drawing.text(u + 87, top + tile["BLOCK_L"] * down + 14, "winner", size=12)
    drawing.text(u + 87, top + tile["BLOCK_L"] * down + 29, "of each", size=12)


def _regions(drawing: Drawing, left: float) -> None:
    """The kernel ``_regions``."""
    strip = patch_assignment_triton._regions.all_configs[0].kwargs
    down, across = MATRIX
    tall, wide = PATCHES * down, WIDTH * across
    _title(drawing, left, "_regions: a program has some channels of one sample")
    x, y = left + 80, 80.0
    _matrix(drawing, x, y, wide, tall, f"values v: {PATCHES} patches by {WIDTH} channels")
    count = -(-WIDTH // strip["BLOCK_C"])
    for number in range(count):
        drawing.box(
            x + number * strip["BLOCK_C"] * across,
            y,
            strip["BLOCK_C"] * across,
            tall,
            TILE if number == 2 else "none",
            EDGE,
        )
    u = x + 2 * strip["BLOCK_C"] * across
    drawing.box(
        u, y + 2 * strip["BLOCK_L"] * down, strip["BLOCK_C"] * across, strip["BLOCK_L"] * down, HOT, EDGE
    )
    drawing.box(x - 24, y, 10, tall, HOT, EDGE)
    drawing.text(x - 34, y + tall / 2, "winners", size=12, turned=True)
    drawing.text(
        x + wide / 2,
        y + tall + 18,
        f"{count} programs a sample; each walks the patches, {strip['BLOCK_L']} at a time",
        size=12,
    )
    drawing.arrow((u + 20, y + tall + 26), (u + 20, y + tall + 42))
    drawing.box(u, y + tall + 46, strip["BLOCK_C"] * across, 14, HOT, EDGE)
    drawing.text(
        u + strip["BLOCK_C"] * across + 8,
        y + tall + 53,
        f"means of {CENTERS} centers: {CENTERS} x {strip['BLOCK_C']}",
        size=12,
        anchor="start",
    )


def superpixels() -> str:
    """SVG of ``superpixel_kl``, forward."""
    tile = superpixel_kl_triton.CONFIGS[0].kwargs
    scale = 1.4
    side = PATCHES * scale
    drawing = Drawing(1000, 380, "Tiles of the superpixel divergence")
    _title(drawing, 20, "A program has a tile of patches and compares their superpixels with those of all")
    x, y = 90.0, 70.0
    drawing.box(x, y, side, side, WHOLE, EDGE)
    drawing.text(x + side / 2, y - 14, f"patch l: {PATCHES}", size=12)
    drawing.text(x - 16, y + side / 2, f"patch l': {PATCHES}", size=12, turned=True)
    wide, tall = tile["BLOCK_L"] * scale, tile["BLOCK_J"] * scale
    drawing.box(x, y, wide, side, TILE, EDGE)
    drawing.box(x, y + 2 * tall, wide, tall, HOT, EDGE)
    drawing.text(
        x + wide / 2, y + 2.5 * tall, f"{tile['BLOCK_J']} x {tile['BLOCK_L']} on chip", size=13, bold=True
    )
    drawing.arrow((x + wide + 14, y + 6), (x + wide + 14, y + side - 6))
    drawing.text(x + wide + 26, y + side / 2, "walks down", size=12, turned=True)
    drawing.text(x + side / 2, y + side + 16, "ids[l'] = ids[l]?  never stored as a matrix", size=12)
    lines = (
        "For each tile of the walk:",
        "1.  read 8 assignments and one id of each l'",
        "2.  compare ids: a matrix of zeros and ones, on chip",
        "3.  multiply: sums of assignments and counts for each l",
        "",
        "At the end, for its own patches:",
        "4.  mean assignment m[l], two softmaxes, the divergence",
        "5.  store one number a patch",
        "",
        "Backward walks once more and keeps nothing in between.",
    )
    _lines(drawing, 480, y + 20, lines)
    return drawing.svg()


def contrastive() -> str:
    """SVG of the contrastive loss, forward."""
    sizes = contrastive_triton.TILES[torch.bfloat16, "forward"]
    side = contrastive_triton.TritonBlocks.forward_side
    drawing = Drawing(1000, 470, "Tiles of the contrastive loss")
    _title(
        drawing,
        20,
        "A rank has its own images by all texts; a program has one tile and uses it in both directions",
    )
    x, y, cell = 90.0, 80.0, 13.0
    ranks, own = 4, 7
    for rank in range(ranks):
        drawing.box(
            x, y + rank * own * cell, ranks * own * cell, own * cell, "#f7f7f7" if rank != 1 else WHOLE, EDGE
        )
        drawing.text(x - 12, y + (rank + 0.5) * own * cell, f"rank {rank}", size=12, turned=True)
    for row in range(own):
        for column in range(ranks * own):
            drawing.box(x + column * cell, y + (own + row) * cell, cell, cell, "none", "#b9c4cd")
    for number in range(ranks * own):
        drawing.box(x + number * cell + 4, y + number * cell + 4, 5, 5, "#7b8a97")
    row, column = 3, 17
    drawing.box(x, y + (own + row) * cell, ranks * own * cell, cell, TILE, EDGE)
    drawing.box(x + column * cell, y + own * cell, cell, own * cell, TILE, EDGE)
    drawing.box(x + column * cell, y + (own + row) * cell, cell, cell, HOT, EDGE)
    drawing.text(
        x + ranks * own * cell / 2,
        y - 12,
        "texts of all ranks: gathered, or passed round (loss.ring)",
        size=12,
    )
    end = x + ranks * own * cell
    drawing.box(end + 30, y + own * cell, 10, own * cell, TILE, EDGE)
    drawing.box(end + 30, y + (own + row) * cell, 10, cell, HOT, EDGE)
    drawing.arrow((end + 4, y + (own + row + 0.5) * cell), (end + 28, y + (own + row + 0.5) * cell))
    lines = (
        f"a tile: {sizes['TILE_B']} x {sizes['TILE_N']} logits, in registers",
        f"its products: {sizes['BLOCK_E']} of the E columns at a time",
        f"in blocks of {side:,} x {side:,}, one after the other",
        "",
        "out of a tile come two vectors:",
        "log-sum-exp of its rows: image to texts",
        "log-sum-exp of its columns: text to images",
        "",
        "rows are then finished on their rank;",
        "columns have a part on each and meet at their text's",
        "",
        "small squares: pairs, the logits that all others",
        "are measured against",
    )
    _lines(drawing, end + 70, y + 8, lines)
    return drawing.svg()


def _title(drawing: Drawing, x: float, text: str) -> None:
    drawing.text(x, 22, text, anchor="start", size=15, bold=True)


def _lines(drawing: Drawing, x: float, y: float, lines: Sequence[str]) -> None:
    """What a drawing shows, in words."""
    for number, line in enumerate(lines):
        drawing.text(x, y + number * 25, line, size=14, anchor="start")


def _matrix(drawing: Drawing, x: float, y: float, width: float, height: float, name: str) -> None:
    drawing.box(x, y, width, height, WHOLE, EDGE)
    drawing.text(x + width / 2, y - 14, name, size=13)


DRAWINGS = {
    "assignment-tiles.svg": assignment,
    "superpixel-tiles.svg": superpixels,
    "contrastive-tiles.svg": contrastive,
}

if __name__ == "__main__":
    for name, draw in DRAWINGS.items():
        (Path(sys.argv[1]) / name).write_text(draw(), encoding="utf-8")
