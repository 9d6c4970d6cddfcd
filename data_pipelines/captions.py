"""Captions: drawing a part of one, and turning text into the token ids of CLIP."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from segclip.tokenizer import ClipTokenizer

__all__ = ["Tokenizer", "caption_part", "tokenizer"]

_LIST = re.compile(r", (?:and )?| and ")


def caption_part(caption: str, chances: tuple[float, float, float], number: float, choice: float) -> str:
    """The whole caption, one of the things it lists, or the ground they are on.

    Works on the text alone: what stands after the last `` on `` is the ground, what stands before is a list
    joined by commas and ``and``. A caption without `` on `` is returned whole.

    Args:
        caption: ``a red circle and a white star on sand``.
        chances: of the whole caption, of one thing, of the ground; they sum to 1.
        number: uniform in (0, 1), decides which of the three.
        choice: uniform in (0, 1), decides which of the things.
    """
    if number < chances[0]:
        return caption
    things, on, ground = caption.rpartition(" on ")
    if not on:
        return caption
    if number >= chances[0] + chances[1]:
        return ground
    listed = _LIST.split(things)
    return listed[int(choice * len(listed))]


class Tokenizer(Protocol):
    """Token ids of a caption: int64 [words], start token first, end token last of the text, zeros behind."""

    def __call__(self, caption: str) -> NDArray[np.int64]: ...


@lru_cache(maxsize=4)
def tokenizer(words: int) -> Tokenizer:
    """CLIP's byte-pair tokenizer for ``words`` tokens, with the ids of the original.

    A longer text is cut so that the end token stays last. A caption that spells out ``<|endoftext|>`` gets an end
    token there, as in the original, and for the network it ends there (``segclip.models.text.TextTower``). Ids of
    captions seen before are kept (the arrays are shared: do not write to them).
    """
    base = _clip_tokenizer()
    start, end = base.sot_token_id, base.eot_token_id

    @lru_cache(maxsize=8192)
    def tokenize(caption: str) -> NDArray[np.int64]:
        ids = [start, *_encode(caption), end][:words]
        ids[-1] = end if len(ids) == words else ids[-1]
        row = np.zeros(words, dtype=np.int64)
        row[: len(ids)] = ids
        row.flags.writeable = False
        return row

    return tokenize


def _clip_tokenizer() -> ClipTokenizer:
    from segclip.tokenizer import clip_tokenizer  # reads the vocabulary: only when texts are encoded

    return clip_tokenizer()


def _encode(text: str) -> list[int]:
    """Token ids of a text without start and end.

    Most of the tokenizer's time goes into repairing text and into pieces it has encoded before. Printable ASCII without
    character references needs no repair, and each piece (a word, a digit, a run of signs) has ids of its own.
    """
    base = _clip_tokenizer()
    if not (text.isascii() and text.isprintable()) or "&" in text:
        return list(base.encode(text))
    plain = " ".join(text.split()).lower()
    return [number for piece in base.pat.findall(plain) for number in _piece_ids(piece)]


@lru_cache(maxsize=65536)
def _piece_ids(piece: str) -> tuple[int, ...]:
    base = _clip_tokenizer()
    symbols = "".join(base.byte_encoder[byte] for byte in piece.encode())
    return tuple(base.encoder[part] for part in base.bpe(symbols).split(" "))
