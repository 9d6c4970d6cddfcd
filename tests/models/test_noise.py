from __future__ import annotations

import pytest
import torch

from segclip.keyed_random import gumbel
from segclip.models.noise import InjectedNoise, KeyedNoise
from segclip.models.text_reconstruction import word_order

POSITIONS = torch.tensor([5, 900, 31])
TOKENS = torch.tensor([[60, 3, 4, 5, 63, 0], [60, 3, 63, 0, 0, 0], [60, 3, 4, 63, 0, 0]])
METHODS = ("mask_scores", "drop_path", "patch_dropout")


def test_a_samples_noise_does_not_depend_on_its_batch() -> None:
    together, alone = KeyedNoise(1, POSITIONS), KeyedNoise(1, POSITIONS[1:2])
    for method in METHODS:
        assert torch.equal(getattr(together, method)(9)[1:2], getattr(alone, method)(9))
    assert torch.equal(together.word_order(TOKENS)[1:2], alone.word_order(TOKENS[1:2]))


def test_draws_differ_by_purpose_seed_and_position() -> None:
    noise = KeyedNoise(1, POSITIONS)
    draws = [getattr(noise, method)(9) for method in METHODS]
    draws += [gumbel(*key, 9) for key in (noise.gumbel_main(), noise.gumbel_masked())]
    draws += [KeyedNoise(2, POSITIONS).mask_scores(9), KeyedNoise(1, POSITIONS + 1).mask_scores(9)]
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) == len(draws)


def test_word_order_keeps_the_first_word_and_the_end() -> None:
    scores = torch.rand(3, 6, generator=torch.Generator().manual_seed(0))
    order = word_order(scores, TOKENS)
    assert torch.equal(order.sort(dim=1).values, torch.arange(6).expand(3, 6))
    assert order[:, 0].tolist() == [0, 0, 0]
    assert order[:, 1].tolist() == [4, 2, 3]
    rest = scores.gather(1, order[:, 2:])
    assert torch.equal(rest, rest.sort(dim=1).values)


def test_injected_noise_refuses_what_it_does_not_hold() -> None:
    noise = InjectedNoise(torch.zeros(3, 2, 4), mask_scores_BL=torch.rand(3, 5))
    with pytest.raises(ValueError, match="needs gumbel_masked_BGK"):
        noise.gumbel_masked()
    with pytest.raises(ValueError, match=r"mask_scores_BL must hold 4 numbers a sample, got shape \[3, 5\]"):
        noise.mask_scores(4)
