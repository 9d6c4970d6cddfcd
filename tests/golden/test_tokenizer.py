"""Token ids of the original's training loader and of its evaluation, for odd captions too."""

from __future__ import annotations

import numpy as np
import pytest

from segclip.data_pipelines.captions import tokenizer
from segclip.eval.text import tokenize

SPECIAL = pytest.param(
    12,
    marks=pytest.mark.xfail(
        strict=True, reason="the original reads <|endoftext|> in a caption as the end token"
    ),
)


@pytest.mark.parametrize("words", [32, 77])
@pytest.mark.parametrize("number", [*range(12), SPECIAL, 13, 14])
def test_token_ids(number, words, golden_json) -> None:
    table = golden_json("tokenizer.json")
    caption, ids = table["captions"][number], table["encode"][number]
    expected = table[f"get_text_{words}"][number]
    found = tokenizer(words)(caption)
    np.testing.assert_array_equal(found, expected["ids"])
    # The original's mask of words is what stands up to the end token, which has the largest id.
    np.testing.assert_array_equal(np.arange(words) <= found.argmax(), np.asarray(expected["mask"]) == 1)
    # Evaluation cuts a text that is too long in the original; ours refuses it.
    if len(ids) + 2 > words:
        with pytest.raises(ValueError, match=f"{len(ids) + 2} tokens, but the model reads only {words}"):
            tokenize([caption], words)
    else:
        assert tokenize([caption], words).tolist() == [table[f"seg_Tokenize_{words}"][number]]


def test_all_golden_captions_are_tested(golden_json) -> None:
    table = golden_json("tokenizer.json")
    assert len(table["captions"]) == 15
    assert (table["sot"], table["eot"], table["vocab_size"]) == (49406, 49407, 49408)
