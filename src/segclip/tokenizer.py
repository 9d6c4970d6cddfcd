"""CLIP's byte-pair tokenizer, the one definition that training and evaluation share."""

from __future__ import annotations

from functools import lru_cache

import regex
from open_clip.tokenizer import SimpleTokenizer

__all__ = ["END", "START", "ClipTokenizer", "clip_tokenizer"]

START, END = "<|startoftext|>", "<|endoftext|>"


class ClipTokenizer(SimpleTokenizer):
    """open_clip's tokenizer with OpenAI's names of the two special tokens.

    CLIP and SegCLIP call them ``<|startoftext|>`` and ``<|endoftext|>``, open_clip ``<start_of_text>`` and
    ``<end_of_text>``. The ids are the same, but a text that spells a name out gets the special token itself, in the
    middle of the text, and any other spelling is plain signs. So the names decide the ids of such texts; these are
    those of the original. (A text with an end token inside ends there for the network: see
    ``segclip.models.text.TextTower``.)
    """

    def __init__(self) -> None:
        super().__init__()
        for name, number in ((START, self.sot_token_id), (END, self.eot_token_id)):
            theirs = self.decoder[number]
            del self.encoder[theirs], self.cache[theirs]
            self.encoder[name], self.decoder[number], self.cache[name] = number, name, name
        special = "|".join(regex.escape(name) for name in (START, END))
        self.pat = regex.compile(
            special + r"""|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+""", regex.IGNORECASE
        )


@lru_cache(maxsize=1)
def clip_tokenizer() -> ClipTokenizer:
    """The tokenizer, read once a process."""
    return ClipTokenizer()
