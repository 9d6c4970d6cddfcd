from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from segclip.eval.reports.drawing import INK, legend, overlay, save_label_png
from segclip.eval.reports.palette import palette

COLOURS = palette(3)


def tint(picture: Image.Image, x: int, y: int) -> np.ndarray:
    return np.asarray(picture)[y, x].astype(int)


def test_regions_are_tinted_outlined_and_named() -> None:
    image = np.full((20, 20, 3), 128, np.uint8)
    label = np.zeros((20, 20), int)
    label[:, 10:] = 2
    plain = overlay(image, label, ("cat", "dog", "cow"), COLOURS, side=400, words=False)
    assert plain.size == (400, 400)
    for x, number in ((20, 0), (380, 2)):
        away = [np.abs(tint(plain, x, 200) - np.array(colour)).sum() for colour in COLOURS]
        assert int(np.argmin(away)) == number
    assert tuple(tint(plain, 200, 20)) == INK
    named = overlay(image, label, ("cat", "dog", "cow"), COLOURS, side=400)
    changed = np.argwhere((np.asarray(named) != np.asarray(plain)).any(-1))
    assert (changed[:, 1] < 200).any()
    assert (changed[:, 1] > 200).any()


def test_background_is_not_tinted_and_ignored_pixels_are_hatched() -> None:
    image = np.full((20, 20, 3), 60, np.uint8)
    label = np.full((20, 20), 255)
    label[:10] = 0
    found = overlay(image, label, ("background", "dog", "cow"), COLOURS, side=200, untouched=(0,))
    top = np.asarray(found)[5:90].reshape(-1, 3)
    assert len(np.unique(top, axis=0)) == 1
    assert len(np.unique(top[0])) == 1  # still grey
    assert len(np.unique(np.asarray(found)[110:190].reshape(-1, 3), axis=0)) == 2


def test_words_longer_than_the_picture_are_left_to_the_legend() -> None:
    image, label = np.zeros((9, 9, 3), np.uint8), np.zeros((9, 9), int)
    endless, short = (
        np.asarray(overlay(image, label, (name,), COLOURS, side=100))
        for name in ("an endless name that fits on no picture at all " * 3, "cat")
    )
    assert len(np.unique(endless.reshape(-1, 3), axis=0)) == 1
    assert len(np.unique(short.reshape(-1, 3), axis=0)) > 1


def test_legend_holds_every_name_within_its_width() -> None:
    narrow, wide = (legend(["cat", "dog", "cow"], COLOURS, width) for width in (100, 900))
    assert narrow.width == 100
    assert narrow.height > wide.height


def test_label_png_keeps_indices(tmp_path) -> None:
    label = np.array([[0, 1], [2, 1]])
    with Image.open(save_label_png(label, COLOURS, tmp_path / "x.png")) as picture:
        assert picture.mode == "P"
        assert (np.asarray(picture) == label).all()
        assert tuple(picture.getpalette()[3:6]) == COLOURS[1]
    with Image.open(save_label_png(label + 298, palette(3), tmp_path / "many.png")) as picture:
        assert (np.asarray(picture) == label + 298).all()
    with pytest.raises(ValueError, match="label 70000 does not fit"):
        save_label_png(np.array([[70_000]]), COLOURS, tmp_path / "y.png")


def test_every_value_is_a_label_where_none_is_ignored() -> None:
    image, label = np.full((20, 20, 3), 128, np.uint8), np.full((20, 20), 255)
    colours = palette(3) * 100
    found = overlay(image, label, ["x"] * 300, colours, side=200, words=False, ignore=None)
    assert len(np.unique(np.asarray(found).reshape(-1, 3), axis=0)) == 1
