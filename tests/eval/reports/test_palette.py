from __future__ import annotations

import numpy as np

from segclip.eval.reports.palette import distances, named_colours, palette, readable_on


def least(colours) -> float:
    values = np.array(colours, dtype=np.float64)
    apart = distances(values, values)
    return float(apart[~np.eye(len(values), dtype=bool)].min())


def test_colours_stay_apart_for_every_kind_of_colour_vision(scene_classes) -> None:
    assert least(palette(20)) > 14
    assert least(named_colours(tuple(scene_classes))) > 12
    assert len(set(palette(171))) == 171
    # A pair that is plain to most and nearly one colour to a deuteranope: the measure must see that.
    assert least([(200, 60, 40), (120, 110, 30)]) < 20


def test_names_that_say_a_colour_get_it() -> None:
    red, green, blue = named_colours(("a red square", "Grass", "blue car"))
    assert red[0] > max(red[1:]) + 80
    assert green[1] > max(green[0], green[2])
    assert blue[2] > max(blue[:2])


def test_same_names_same_colours() -> None:
    assert palette(9)[:4] == palette(4)
    assert named_colours(("cat", "dog")) == named_colours(("cat", "dog"))
    assert palette(0) == ()


def test_readable() -> None:
    assert readable_on((250, 250, 110)) == (0, 0, 0)
    assert readable_on((40, 30, 90)) == (255, 255, 255)
