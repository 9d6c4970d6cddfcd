"""COCO's run-length encoding of masks: lengths of runs of 0 and 1 in turn, down the columns, beginning with 0."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["decode_mask", "run_lengths"]


def run_lengths(text: str) -> list[int]:
    """The lengths in COCO's compressed form.

    A length is written in groups of 5 bits, the lowest first, a character each (48 + bits, + 32 if more follow), as
    two's complement; from the fourth on it is the difference to the length two places before.

    Raises:
        ValueError: a character that cannot stand there, or the text ends within a length.
    """
    lengths: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64:
            raise ValueError(f"{character!r} is no character of a compressed mask")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("a compressed mask ends within a length")
    return lengths


def decode_mask(segmentation: Any) -> NDArray[np.bool_]:
    """bool [H, W] of ``{"size": [H, W], "counts": text or list of lengths}``.

    Raises:
        ValueError: it is something else, or the lengths do not fill the size.
    """
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        what = "polygons" if isinstance(segmentation, list) else f"{str(segmentation)[:40]!r}"
        raise ValueError(f"a mask is 'size' and 'counts' (run lengths), got {what}")
    height, width = (int(side) for side in segmentation["size"])
    counts = segmentation["counts"]
    lengths = run_lengths(counts) if isinstance(counts, str) else [int(length) for length in counts]
    if any(length < 0 for length in lengths) or sum(lengths) != height * width:
        raise ValueError(
            f"the lengths of a mask fill {sum(lengths):,} pixels of {height * width:,} ({width} x {height})"
        )
    flat = np.zeros(height * width, dtype=np.bool_)
    ends = list(accumulate(lengths))
    for begin, end in zip(ends[0::2], ends[1::2], strict=False):
        flat[begin:end] = True
    return flat.reshape((height, width), order="F")
