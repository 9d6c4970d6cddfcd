"""A page of samples with their captions, to judge a shard set by eye."""

from __future__ import annotations

import io
import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segclip.data_pipelines.label_maps import SUPERPIXELS, decode_label_map
from segclip.data_pipelines.manifest import read_manifest
from segclip.data_pipelines.pictures import picture_extension
from segclip.data_pipelines.shard import read_shard
from segclip.data_pipelines.storage.store import open_store

__all__ = ["contact_sheet"]

COLUMNS, PICTURE, GAP, LINES, FONT_SIZE = 6, 168, 22, 3, 14
PAPER, INK, BORDER = (250, 249, 246), (40, 40, 44), (255, 255, 255)


def _pick_samples(url: str, count: int) -> list[dict[str, bytes]]:
    """Members by extension of ``count`` samples spread evenly over a shard set."""
    store = open_store(url)
    manifest = read_manifest(store)
    wanted = np.unique(np.linspace(0, manifest.samples - 1, min(count, manifest.samples)).round().astype(int))
    picked = []
    start = 0
    for entry in manifest.shards:
        inside = wanted[(wanted >= start) & (wanted < start + entry.count)] - start
        start += entry.count
        if not len(inside):
            continue
        shard = read_shard(store, entry)
        picked += [
            {extension: bytes(content) for extension, content in shard.members(shard.samples[index]).items()}
            for index in inside
        ]
    return picked


def contact_sheet(url: str, path: Path, *, count: int, outlines: bool) -> list[str]:
    """Write a PNG page of samples, each with its caption below.

    Args:
        url: the shard set.
        path: file to write.
        count: how many samples, taken evenly over the set.
        outlines: draw the borders of the stored superpixels.

    Returns:
        The captions, in the order of the page.
    """
    samples = _pick_samples(url, count)
    font = ImageFont.load_default(FONT_SIZE)
    line = FONT_SIZE + 4
    cell_height = PICTURE + GAP + LINES * line
    rows = -(-len(samples) // COLUMNS)
    page = Image.new(
        "RGB", (COLUMNS * (PICTURE + GAP) + GAP, rows * cell_height + (rows + 1) * GAP // 2), PAPER
    )
    draw = ImageDraw.Draw(page)
    captions = []
    for number, members in enumerate(samples):
        picture = _picture(members, outlines)
        left = GAP + number % COLUMNS * (PICTURE + GAP)
        top = GAP + number // COLUMNS * (cell_height + GAP // 2)
        page.paste(picture, (left + (PICTURE - picture.width) // 2, top + PICTURE - picture.height))
        caption = members.get("txt", b"(no caption)").decode("utf-8", "replace").strip()
        captions.append(caption)
        for n, text in enumerate(textwrap.wrap(caption, 25, max_lines=LINES, placeholder=" ...")):
            middle = left + PICTURE // 2
            draw.text((middle, top + PICTURE + 6 + n * line), text, fill=INK, font=font, anchor="ma")
    page.save(path, "PNG")
    return captions


def _picture(members: dict[str, bytes], outlines: bool) -> Image.Image:
    """A sample's picture fitted into a square, with the borders of its superpixels if asked for."""
    extension = picture_extension(members)
    if extension is None:
        return Image.new("RGB", (PICTURE, PICTURE), INK)
    picture = Image.open(io.BytesIO(members[extension])).convert("RGB")
    scale = PICTURE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.resize(size, Image.Resampling.LANCZOS)
    if outlines and SUPERPIXELS in members:
        ids = decode_label_map(members[SUPERPIXELS])
        rows = np.arange(size[1]) * ids.shape[0] // size[1]
        columns = np.arange(size[0]) * ids.shape[1] // size[0]
        large = ids[rows[:, None], columns]
        edge = np.zeros(large.shape, dtype=bool)
        edge[1:] |= large[1:] != large[:-1]
        edge[:, 1:] |= large[:, 1:] != large[:, :-1]
        pixels = np.array(picture)
        pixels[edge] = BORDER
        picture = Image.fromarray(pixels)
    return picture
