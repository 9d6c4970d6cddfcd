"""Token ids of the original's training loader and of its evaluation, for odd captions too."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from segclip.data_pipelines.captions import tokenizer
from segclip.eval.text import tokenize
from segclip.models.text_reconstruction import valid_words


@pytest.mark.parametrize("words", [32, 77])
@pytest.mark.parametrize("number", range(15))
def test_token_ids(number, words, golden_json) -> None:
    table = golden_json("tokenizer.json")
    caption, ids = table["captions"][number], table["encode"][number]
    expected = table[f"get_text_{words}"][number]
    found = tokenizer(words)(caption)
    np.testing.assert_array_equal(found, expected["ids"])
    # The original's mask of words: all that is no padding.
    valid = valid_words(torch.tensor(found)[None])[0]
    np.testing.assert_array_equal(valid, np.asarray(expected["mask"]) == 1)
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
