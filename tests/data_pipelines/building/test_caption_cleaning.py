from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segclip.data_pipelines.building.caption_cleaning import CleanCaption, clean_caption


@pytest.mark.parametrize(
    ("raw", "text", "repaired"),
    [
        ("a red circle", "a red circle", False),
        ("  a\tred \n circle ", "a red circle", False),
        ("caf\u00c3\u00a9 in Z\u00c3\u00bcrich", "caf\u00e9 in Z\u00fcrich", True),
        ("salt &amp; pepper", "salt & pepper", True),
        ("a\x00b\x07c", "abc", True),
        ("\u732b\u3068\u72ac", "\u732b\u3068\u72ac", False),
        (b"caf\xc3\xa9", "caf\u00e9", False),
        (b"\xef\xbb\xbfcaf\xc3\xa9", "caf\u00e9", False),
        (b"caf\xe9", "caf\u00e9", True),
        ("", "", False),
        (" \n", "", False),
        (b"", "", False),
        ("\x00", "", True),
        ("\u200b \u2060\u200d", "", True),
        ("\U0001f469\u200d\U0001f467", "\U0001f469\u200d\U0001f467", False),
        ("\ud800 x", "\ufffd x", True),
    ],
)
def test_captions_are_mended(raw: str | bytes, text: str, repaired: bool) -> None:
    assert clean_caption(raw, 100) == CleanCaption(text, repaired, cut=False)


def test_long_captions_end_after_a_whole_word() -> None:
    assert clean_caption("one two three", 8) == CleanCaption("one two", False, True)
    assert clean_caption("one two three", 7) == CleanCaption("one two", False, True)
    assert clean_caption("one two three", 13) == CleanCaption("one two three", False, False)
    assert clean_caption("abcdefgh", 5) == CleanCaption("abcde", False, True)
    assert clean_caption("word " * 10**6, 9) == CleanCaption("word word", False, True)


@given(st.one_of(st.text(), st.binary()), st.integers(1, 30))
def test_what_comes_out_is_one_short_line_of_utf8_or_nothing(raw: str | bytes, longest: int) -> None:
    text = clean_caption(raw, longest).text
    assert len(text) <= longest
    assert text == " ".join(text.split())
    assert text.encode().decode() == text
