from __future__ import annotations

import pytest

from segclip.models.flops import forward_flops, training_flops
from segclip.models.sizes import segclip_quickstart, segclip_vit_b16


def test_vit_b16_takes_what_its_shapes_say() -> None:
    """By hand, GFLOP forward: patches 30.67, visible patches 9.05, 32 words 2.46, decoder with head about 2.1."""
    config = segclip_vit_b16().config
    assert training_flops(config, 32) / 1e9 == pytest.approx(132.8, abs=0.1)
    assert (training_flops(config, 77) - training_flops(config, 32)) / 1e9 == pytest.approx(
        3 * (6.00 - 2.46), abs=0.1
    )
    whole, without = forward_flops(config, 32), forward_flops(config, 32, reconstruction=False)
    assert without / 1e9 == pytest.approx(30.67 + 2.46, abs=0.1)
    assert (whole - without) / 1e9 == pytest.approx(9.05 + 2.1, abs=0.1)


def test_nothing_is_loaded_or_computed_for_it() -> None:
    config = segclip_quickstart().config.model_copy(update={"init_from": "ViT-B-16/nowhere"})
    assert forward_flops(config, 16) > 0
