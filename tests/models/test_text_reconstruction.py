from __future__ import annotations

import torch
import torch.nn.functional as F

from segclip.models.text_reconstruction import MaskedTextDecoder, masked_word_loss, valid_words

TOKENS = torch.tensor([[60, 3, 4, 5, 63, 0, 0, 0], [60, 3, 63, 0, 0, 0, 0, 0]])


def test_valid_words_end_with_the_end() -> None:
    assert valid_words(TOKENS).sum(dim=1).tolist() == [5, 3]


def test_loss_counts_hidden_words_that_are_no_padding() -> None:
    logits = torch.randn(2, 8, 64)
    order = torch.tensor([[0, 4, 1, 5, 6, 2, 3, 7], [0, 1, 2, 3, 4, 5, 6, 7]])
    # Of places 2, 3 and 7 of the first text two are words; the second hides padding only.
    expected = F.cross_entropy(logits[0, 2:4], TOKENS[0, 2:4])
    torch.testing.assert_close(masked_word_loss(logits, TOKENS, order, 5), expected)


def test_loss_is_zero_when_no_word_is_hidden() -> None:
    logits = torch.randn(1, 8, 64, requires_grad=True)
    loss = masked_word_loss(logits, TOKENS[1:], torch.arange(8)[None], 5)
    assert loss == 0
    loss.backward()
    assert not logits.grad.any()


def test_no_word_attends_to_padding(tiny_config) -> None:
    torch.manual_seed(0)
    decoder = MaskedTextDecoder(tiny_config(text_reconstruction=True))
    order, hidden = torch.arange(8)[None].expand(2, 8), torch.randn(2, 6, 16)
    valid = valid_words(TOKENS)
    out = decoder(hidden, order, valid)
    changed = hidden.clone()
    changed[1, 3:] += 1  # padding of the second text
    again = decoder(changed, order, valid)
    torch.testing.assert_close(again[1, :3], out[1, :3])
    assert not torch.allclose(again[1, 3:6], out[1, 3:6])
