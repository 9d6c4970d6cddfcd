from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segclip.data_pipelines.captions import caption_part, tokenizer
from segclip.eval.text import tokenize
from segclip.tokenizer import END, START, ClipTokenizer

CHANCES = (0.8, 0.12, 0.08)
WHOLE = ClipTokenizer()


@pytest.mark.parametrize(
    ("caption", "things"),
    [
        ("a red circle on sand", ["a red circle"]),
        ("a red circle and a white star on sand", ["a red circle", "a white star"]),
        ("a red circle, a white star and a cat on sand", ["a red circle", "a white star", "a cat"]),
        ("a red circle, a white star, and a cat on sand", ["a red circle", "a white star", "a cat"]),
    ],
)
def test_parts_are_those_of_the_text(caption: str, things: list[str]) -> None:
    assert caption_part(caption, CHANCES, 0.79, 0.5) == caption
    choices = (np.arange(60) + 0.5) / 60
    assert [caption_part(caption, CHANCES, 0.9, choice) for choice in choices] == list(
        np.repeat(things, 60 // len(things))
    )
    assert caption_part(caption, CHANCES, 0.93, 0.5) == "sand"


def test_a_caption_without_on_stays_whole() -> None:
    for number in (0.1, 0.85, 0.99):
        assert caption_part("two cats and a dog", CHANCES, number, 0.5) == "two cats and a dog"


def test_the_ground_is_what_follows_the_last_on() -> None:
    assert caption_part("a cat on a mat on grass", CHANCES, 0.99, 0.5) == "grass"


@settings(max_examples=400, deadline=None)
@given(
    text=st.one_of(
        st.text(max_size=40),
        st.text(alphabet=st.characters(max_codepoint=127), max_size=60),
        st.lists(
            st.sampled_from(
                [
                    *[
                        "a",
                        "red",
                        "Circle",
                        "'s",
                        "'LL",
                        "don't",
                        "&amp;",
                        "&lt;",
                        "<end_of_text>",
                        START,
                        END,
                        END.upper(),
                        "<|end",
                        "12",
                        "猫",
                        "é",
                        "...",
                        "--",
                    ],
                    "  ",
                ]
            )
        ).map(" ".join),
    ),
    words=st.sampled_from([3, 8, 77]),
)
def test_tokens_are_those_of_the_whole_way(text: str, words: int) -> None:
    expected = WHOLE([text], context_length=words)[0].numpy()
    np.testing.assert_array_equal(tokenizer(words)(text), expected)


def test_a_long_text_keeps_its_end_token_last() -> None:
    ids = tokenizer(6)("a red circle and a white star and a purple square on sand")
    assert ids[0] == 49406
    assert ids[-1] == 49407
    assert ids.tolist().count(49407) == 1


def test_evaluation_gives_the_same_tokens() -> None:
    for text in (
        "a photo of a cat.",
        f"{END} injected {START}",
        "<end_of_text>",
        "&lt;|endoftext|&gt; caf\u00e9",
    ):
        assert tokenize([text], 77)[0].tolist() == tokenizer(77)(text).tolist()
