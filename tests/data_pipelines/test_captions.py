from __future__ import annotations

import html

import ftfy
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer

from segclip.data_pipelines.captions import caption_part, tokenizer
from segclip.eval.text import tokenize
from segclip.tokenizer import END, START, ClipTokenizer

CHANCES = (0.8, 0.12, 0.08)
WHOLE = ClipTokenizer()
OPEN_CLIP = SimpleTokenizer()


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


# Names of special tokens: ours are those of the original CLIP, open_clip has others.
SPECIAL = ("<start_of_text>", "<end_of_text>", START, END)
# Combining marks, letters whose case has another length, other scripts, emoji; what ftfy and HTML repair; signs.
PIECES = """
    e\u0301 e\u0301\u0302\u0327 \u0301 a\u0336\u0336\u0336 ﬁ Å \uff41\uff42 İ ß ǅ ΑΣ \U0001d4b3 𐍈
    猫と犬 한국어 हिन्दी العربية ไทย 👍🏽 👩\u200d👧 🏳️\u200d🌈 🇩🇪 1️⃣ 😀😀😀
    Ã© â€œquotedâ€\x9d schÃ¶n &amp;amp; &#x41; &nbsp; &notit; \u2019s “a”
    'S 'Ll it's ½ ٣ Ⅷ x² 3.14 <br> <| a_b #tag @me http://a.b/c?d=e&f=g . !!! 1234567890
    A photo of supercalifragilisticexpialidocious
"""
CONTROLS = ("\0", "\x07", "\x1b[31m", "\x7f", "\xad", "\u200b", "\u200d", "\u202e", "\ufeff", "\ufffd")
SPACES = (" ", "  ", "\x85", "\xa0", "\u2028", "\u3000", "\t\r\n")
ODD = st.sampled_from([*PIECES.split(" "), *CONTROLS, *SPACES])


def ids_of_open_clip(text: str, words: int) -> list[int]:
    return [int(number) for number in OPEN_CLIP([text], context_length=words)[0]]


@settings(max_examples=600, deadline=None)
@given(
    text=st.one_of(
        st.text(max_size=50),
        st.text(alphabet=st.characters(categories=["Cc", "Cf", "Mn", "Me", "So", "Sk", "Zs"]), max_size=30),
        st.text(alphabet=st.characters(max_codepoint=0x2FF), max_size=60),
        st.lists(ODD, max_size=40).map("".join),
        st.lists(ODD, max_size=40).map(" ".join),
        st.lists(st.one_of(ODD, st.text(max_size=6)), max_size=20).map(" ".join),
        st.builds(str.__mul__, st.one_of(ODD, st.text(min_size=1, max_size=5)), st.integers(50, 300)),
    ),
    words=st.sampled_from([3, 8, 32, 77]),
)
def test_tokens_are_those_of_open_clip(text: str, words: int) -> None:
    assume(not any(name in ftfy_and_html(text).lower() for name in SPECIAL))
    assert tokenizer(words)(text).tolist() == ids_of_open_clip(text, words)


def ftfy_and_html(text: str) -> str:
    """The text as tokenizers repair it, in which a special name may only then be spelled out."""
    return html.unescape(html.unescape(ftfy.fix_text(text)))


@pytest.mark.parametrize("words", [3, 32, 77])
@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n",
        "a " * 20_000,
        "ab" * 1_000,
        "猫" * 1_000,
        "🎈" * 500,
        "e\u0301" * 700,
        "\ud800 lone",
        "x\udfff",
    ],
    ids=["empty", "space", "words", "letters", "signs", "balloons", "accents", "lone", "low"],
)
def test_long_and_empty_texts_have_the_tokens_of_open_clip(text: str, words: int) -> None:
    ids = tokenizer(words)(text).tolist()
    assert ids == ids_of_open_clip(text, words)
    assert ids.count(49407) == 1
    assert ids[ids.index(49407) + 1 :] == [0] * (words - 1 - ids.index(49407))


@pytest.mark.parametrize("words", [5, 32])
@pytest.mark.parametrize("spelled", [END, END.upper(), START])
def test_a_name_that_is_spelled_out_is_the_token_where_open_clip_has_its_own_name(
    spelled: str, words: int
) -> None:
    theirs = {START: "<start_of_text>", END: "<end_of_text>"}[spelled.lower()]
    for text in ("a {} cat", "{}", "{}{}", "x{}y", "a cat" * 20 + " {}"):
        ours = tokenizer(words)(text.replace("{}", spelled)).tolist()
        assert ours == ids_of_open_clip(text.replace("{}", theirs), words)


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
