from __future__ import annotations

import numpy as np

from segclip.data_pipelines.crops import CROP_DRAWS, crop_box


def test_boxes_lie_inside_and_have_the_stated_area_and_shape() -> None:
    draws = np.random.default_rng(0).random((500, CROP_DRAWS))
    shares = []
    for row in draws.tolist():
        box = crop_box(240, 320, (0.5, 1.0), (3 / 4, 4 / 3), row)
        assert box.top >= 0
        assert box.left >= 0
        assert box.top + box.height <= 240
        assert box.left + box.width <= 320
        assert 0.74 < box.width / box.height < 1.34
        shares.append(box.height * box.width / (240 * 320))
    assert min(shares) > 0.49
    assert min(shares) < 0.55
    assert max(shares) > 0.9


def test_a_crop_that_never_fits_is_the_largest_centred_piece() -> None:
    box = crop_box(10, 400, (0.9, 1.0), (3 / 4, 4 / 3), [0.5] * CROP_DRAWS)
    assert (box.height, box.width, box.top, box.left) == (10, 13, 0, 193)
