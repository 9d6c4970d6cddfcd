from __future__ import annotations

import torch

from segclip.models.reconstruction import MaskedImageDecoder


def test_masked_places_are_a_part_of_all_places(tiny_config) -> None:
    torch.manual_seed(0)
    config = tiny_config()
    decoder = MaskedImageDecoder(config)
    order = torch.rand(2, 16).argsort(dim=1)
    hidden = torch.randn(2, 3, 32)
    everything = decoder(hidden, order, config.grid, only_masked=False)
    assert everything.shape == (2, 17, 3 * 36)
    masked = decoder(hidden, order, config.grid)
    expected = everything.gather(1, (order[:, 3:] + 1)[:, :, None].expand(-1, -1, 108))
    torch.testing.assert_close(masked, expected)


def test_a_visible_token_stands_in_its_place(tiny_config) -> None:
    config = tiny_config(decoder_depth=0)
    decoder = MaskedImageDecoder(config)
    order = torch.arange(16)[None].roll(5, dims=1)
    out = decoder(torch.zeros(1, 3, 32), order, config.grid, only_masked=False)
    # Without blocks, a place is a function of its own token and position alone.
    token = decoder.embed(torch.zeros(32)) + decoder.positions[0, 1 + int(order[0, 1])]
    torch.testing.assert_close(out[0, 1 + int(order[0, 1])], decoder.head(decoder.norm(token)))


def test_other_grids_get_their_own_positions(tiny_config) -> None:
    decoder = MaskedImageDecoder(tiny_config())
    order = torch.arange(6)[None]
    assert decoder(torch.zeros(1, 2, 32), order, (2, 3), only_masked=False).shape[1] == 7
