from __future__ import annotations

import re

import numpy as np
import pytest

from segclip.data_pipelines.scenes.scene import (
    CLASSES,
    COLOURS,
    GROUNDS,
    SHAPES,
    Scene,
    class_index,
    draw_scenes,
    render,
)
from segclip.data_pipelines.scenes.textures import texture_bank

SCENES = draw_scenes(seed=11, start=0, count=240)


def names_of(caption: str) -> tuple[list[str], str]:
    """Objects and ground of a caption, read as a person would."""
    things, ground = caption.split(" on ")
    return [re.sub(r"^a ", "", thing) for thing in re.split(r", | and ", things)], ground


def test_classes_are_sixteen_in_a_fixed_order() -> None:
    assert (
        *("red circle", "red bar", "red star", "yellow circle", "yellow bar", "yellow star"),
        *("white circle", "white bar", "white star", "purple circle", "purple bar", "purple star"),
        *("sand", "grass", "water", "brick"),
    ) == CLASSES


def test_label_maps_hold_what_captions_name_and_nothing_else() -> None:
    for scene in SCENES:
        picture, labels = render(scene)
        assert picture.shape == (96, 96, 3)
        assert picture.dtype == labels.dtype == np.uint8
        objects, ground = names_of(scene.caption)
        assert 1 <= len(objects) <= 3
        assert len(set(objects)) == len(objects)
        assert {CLASSES[i] for i in np.unique(labels)} == {*objects, ground}


def test_pixels_have_the_colour_of_their_label() -> None:
    """Where the light falls, the colour that an object is nearest to is the one its name says."""
    table = np.array(list(COLOURS.values()), dtype=float)
    grounds = np.array(
        [np.mean([each.mean(axis=(0, 1)) for each in bank], axis=0) for bank in texture_bank(96)]
    )
    for scene in SCENES[:120]:
        picture, labels = render(scene)
        for each in scene.objects:
            pixels = picture[labels == class_index(each.name)].astype(float)
            lit = pixels[pixels.sum(axis=1) >= np.median(pixels.sum(axis=1))].mean(axis=0)
            distance = np.linalg.norm(lit - np.concatenate([table, grounds]), axis=1)
            assert [*COLOURS, *GROUNDS][distance.argmin()] == each.colour


def test_outlines_have_the_shape_of_their_label() -> None:
    """A bar is longer than wide; a star fills less of its surrounding circle than a circle does."""
    for scene in SCENES:
        _, labels = render(scene)
        for each in scene.objects:
            places = np.argwhere(labels == class_index(each.name))
            short, long = np.sqrt(np.linalg.eigvalsh(np.cov(places.T)))
            furthest = np.hypot(*(places - places.mean(axis=0)).T).max() + 0.5
            filled = len(places) / (np.pi * furthest**2)
            found = "bar" if long > 1.7 * short else "circle" if filled > 0.8 else "star"
            assert found == each.shape, (each, long / short, filled)


def test_objects_are_whole_and_cover_several_patches() -> None:
    """None is hidden or cut by the edge, and each has the area of three 12-pixel patches at least."""
    for scene in draw_scenes(seed=3, start=0, count=600):
        for each in scene.objects:
            assert each.radius >= 0.14
            assert 1.2 * each.radius <= each.x <= 1 - 1.2 * each.radius
            assert 1.2 * each.radius <= each.y <= 1 - 1.2 * each.radius
            for other in scene.objects:
                if other is not each:
                    gap = np.hypot(each.x - other.x, each.y - other.y) - 1.2 * (each.radius + other.radius)
                    assert gap > 0
    smallest = min(
        int((render(scene)[1] == class_index(each.name)).sum()) for scene in SCENES for each in scene.objects
    )
    assert smallest >= 3 * 12 * 12


def test_everything_occurs_about_equally_often() -> None:
    scenes = draw_scenes(seed=0, start=0, count=3000)
    objects = [each.name for scene in scenes for each in scene.objects]
    assert {len(scene.objects) for scene in scenes} == {1, 2, 3}
    assert len(objects) / 12 * 0.8 < min(objects.count(name) for name in CLASSES[:12])
    grounds = [scene.ground for scene in scenes]
    assert min(grounds.count(name) for name in GROUNDS) > 600
    assert {each.shape for scene in scenes for each in scene.objects} == set(SHAPES)


def test_a_scene_depends_on_seed_and_index_alone() -> None:
    assert draw_scenes(11, 100, 20) == SCENES[100:120]
    assert draw_scenes(12, 0, 5) != SCENES[:5]
    first = render(SCENES[7])
    render(SCENES[8])
    np.testing.assert_array_equal(render(SCENES[7])[0], first[0])


def test_other_sizes_show_the_same_scene() -> None:
    for scene in SCENES[:20]:
        _, small = render(scene, 48)
        _, large = render(scene, 96)
        agreement = (small == large[::2, ::2]).mean()
        assert agreement > 0.9
    with pytest.raises(ValueError, match="at least 32"):
        render(SCENES[0], 16)


def test_metadata_names_what_the_caption_names() -> None:
    for scene in SCENES[:20]:
        metadata = scene.metadata()
        assert metadata["caption"] == scene.caption
        assert names_of(scene.caption) == ([each["name"] for each in metadata["objects"]], metadata["ground"])  # type: ignore[attr-defined]


def test_captions_read_well() -> None:
    by_number: dict[int, Scene] = {len(scene.objects): scene for scene in SCENES}
    assert re.fullmatch(r"a \w+ \w+ on \w+", by_number[1].caption)
    assert re.fullmatch(r"a \w+ \w+ and a \w+ \w+ on \w+", by_number[2].caption)
    assert re.fullmatch(r"a \w+ \w+, a \w+ \w+ and a \w+ \w+ on \w+", by_number[3].caption)
