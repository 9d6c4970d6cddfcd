"""Captions as they come from the web, made fit for the tokenizer: encoding mended, spaces joined, length bounded."""

from __future__ import annotations

from dataclasses import dataclass

import ftfy

__all__ = ["CleanCaption", "clean_caption"]


@dataclass(frozen=True, slots=True)
class CleanCaption:
    """A caption ready for a shard.

    Attributes:
        text: one line without spaces at its ends; empty where nothing was left.
        repaired: whether ftfy changed more than spaces (wrong encodings, HTML entities, control characters).
        cut: whether it was longer than allowed.
    """

    text: str
    repaired: bool
    cut: bool


def clean_caption(raw: str | bytes | bytearray | memoryview, longest: int) -> CleanCaption:
    """Clean one caption.

    Args:
        raw: as found; bytes are read as UTF-8, and where they are none, as the encoding ftfy takes them for.
        longest: characters kept. A longer caption ends after the last whole word that fits: the network reads its
            first 77 tokens at most.
    """
    found, readable = (raw, True) if isinstance(raw, str) else _decoded(bytes(raw))
    # Much longer texts are cut before the repair, whose time grows with them.
    start = found[: 4 * longest]
    text = _one_line(ftfy.fix_text(start))
    if not any(each.isprintable() and each != " " for each in text):
        text = ""  # spaces of no width and the like: nothing to read
    repaired = not readable or text != _one_line(start)
    cut = len(text) > longest or len(found) > 4 * longest
    if len(text) > longest:
        whole, space, _ = text[: longest + 1].rpartition(" ")
        text = whole if space else text[:longest]
    return CleanCaption(text, repaired, cut)


def _decoded(content: bytes) -> tuple[str, bool]:
    """A text from its bytes, and whether they were UTF-8."""
    try:
        return content.decode("utf-8-sig"), True
    except UnicodeDecodeError:
        text: str = ftfy.guess_bytes(content)[0]
        return text, False


def _one_line(text: str) -> str:
    return " ".join(text.split())
