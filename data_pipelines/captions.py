"""Captions: drawing a part of one, and turning text into the token ids of CLIP."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

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
    """open_clip's byte-pair tokenizer for ``words`` tokens; a longer text is cut so that the end token stays
    last.

    Ids of captions seen before are kept (the arrays are shared: do not write to them).
    """
    from open_clip.tokenizer import SimpleTokenizer

    encode = SimpleTokenizer(context_length=words)

    @lru_cache(maxsize=8192)
    def tokenize(caption: str) -> NDArray[np.int64]:
        ids: NDArray[np.int64] = encode([caption])[0].numpy()
        ids.flags.writeable = False
        return ids

    return tokenize
