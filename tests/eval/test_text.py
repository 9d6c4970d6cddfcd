from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer

from segclip.eval.text import TextBank, average_templates, tokenize
from segclip.models.segclip import SegCLIP

TEMPLATES = ("a {}.", "a photo of many {}.", "{}")


def test_ids_are_the_training_sides() -> None:
    texts = ["a red circle", "Café au lait", "two dogs   playing", "tv monitor"]
    assert torch.equal(tokenize(texts, 12), SimpleTokenizer(context_length=12)(texts))


def test_a_text_that_does_not_fit_is_refused_not_cut() -> None:
    assert tokenize(["a b c"], 5).tolist()[0][-1] == 49407
    with pytest.raises(ValueError, match="'a b c d' has 6 tokens, but the model reads only 5"):
        tokenize(["a b c d"], 5)


def test_the_two_averaging_rules_differ_as_they_should() -> None:
    embed = torch.tensor([[[3.0, 0.0], [0.0, 1.0]]])
    assert torch.allclose(
        average_templates(embed, "mean_then_normalise"), F.normalize(torch.tensor([[3.0, 1.0]]), dim=-1)
    )
    assert torch.allclose(
        average_templates(embed, "normalise_mean_normalise"), F.normalize(torch.tensor([[1.0, 1.0]]), dim=-1)
    )


def test_bank_embeds_words_under_all_templates(model) -> None:
    found = TextBank(model, TEMPLATES, "mean_then_normalise", batch_size=2)(["cat", "red circle"])
    assert found.shape == (2, 16)
    for row, word in zip(found, ["cat", "red circle"], strict=True):
        tokens = tokenize([each.format(word) for each in TEMPLATES], model.config.context_length)
        with torch.no_grad():
            assert torch.allclose(row, F.normalize(model.encode_text(tokens).mean(0), dim=0), atol=1e-6)


def test_bank_embeds_a_word_once(model, monkeypatch) -> None:
    bank = TextBank(model)
    first = bank(["cat", "dog"])
    seen = []
    encode = model.encode_text
    monkeypatch.setattr(model, "encode_text", lambda tokens: seen.append(len(tokens)) or encode(tokens))
    again = bank(["dog", "fish", "cat", "fish"])
    assert seen == [1]
    assert torch.equal(again[[2, 0]], first)
    assert torch.equal(again[1], again[3])


def test_braces_in_a_word_are_plain_text(model) -> None:
    assert TextBank(model, ("a {}",))(["{0} cat"]).shape == (1, 16)


@pytest.mark.parametrize(("words", "message"), [([], "no words"), (["cat", " "], "a class name is empty")])
def test_empty_lists_and_words(model, words, message) -> None:
    with pytest.raises(ValueError, match=message):
        TextBank(model)(words)


def test_a_checkpoint_of_another_vocabulary(model) -> None:
    other = SegCLIP(model.config.model_copy(update={"vocab_size": 512}))
    with pytest.raises(ValueError, match="vocabulary of 512 tokens, but CLIP's tokenizer has 49408"):
        TextBank(other)
