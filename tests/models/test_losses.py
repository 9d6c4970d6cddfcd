"""Which pairs are no negatives, against sets of words in plain Python."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segclip.models.losses import false_negatives

START, END = 97, 98
WORDS = 9


def tokens(words: list[int]) -> list[int]:
    return [START, *words, END, *[0] * (WORDS - 2 - len(words))]


texts = st.lists(st.integers(1, 12), min_size=1, max_size=6)


@settings(deadline=None, max_examples=100)
@given(captions=st.lists(texts, min_size=1, max_size=5), drawn=st.lists(texts, min_size=1, max_size=7))
def test_a_text_is_left_out_where_the_caption_has_all_its_words(
    captions: list[list[int]], drawn: list[list[int]]
) -> None:
    found = false_negatives(
        torch.tensor([tokens(c) for c in captions]), torch.tensor([tokens(d) for d in drawn])
    )
    expected = [[set(text) <= set(caption) for text in drawn] for caption in captions]
    assert found.tolist() == expected


def test_padding_is_no_word() -> None:
    """A short text in a long caption, and the other way round."""
    caption, text = torch.tensor([tokens([1, 2, 3, 4, 5, 6])]), torch.tensor([tokens([3])])
    assert false_negatives(caption, text).item()
    assert not false_negatives(text, caption).item()
