"""Special tokens by the original's names; the rest is open_clip's. Golden ids: ``tests/golden/test_tokenizer.py``."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer

from segclip.tokenizer import END, START, ClipTokenizer

OURS, OPEN_CLIP = ClipTokenizer(), SimpleTokenizer()


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60))
def test_plain_texts_have_open_clips_ids(text: str) -> None:
    assert OURS.encode(text) == OPEN_CLIP.encode(text)


@pytest.mark.parametrize(
    "text", [f"a {END} b {START}", f"{START}{END}", f"x{END.upper()}y", "&lt;|endoftext|&gt; z"]
)
def test_the_originals_names_are_the_special_tokens(text: str) -> None:
    theirs = text.lower().replace("&lt;", "<").replace("&gt;", ">")
    theirs = theirs.replace(START, "<start_of_text>").replace(END, "<end_of_text>")
    assert {49406, 49407} & set(OURS.encode(text))
    assert OURS.encode(text) == OPEN_CLIP.encode(theirs)


def test_open_clips_names_are_plain_signs() -> None:
    assert OPEN_CLIP.encode("<end_of_text>") == [49407]
    assert max(OURS.encode("<start_of_text> <end_of_text>")) < 49406
    assert (len(OURS.encoder), OURS.vocab_size, OURS.all_special_ids) == (49408, 49408, [49406, 49407])
    assert OURS.decode([49406, 320, 49407]) == f"{START}a {END}"
