from __future__ import annotations

import sys

import numpy as np
import pytest

from segclip.data_pipelines import superpixels
from segclip.data_pipelines.scenes.scene import draw_scenes, render
from segclip.data_pipelines.superpixels import SuperpixelMethod, compute_superpixels, method_from_text


@pytest.mark.parametrize("shrink", [1, 2])
def test_regions_follow_objects(shrink: int) -> None:
    """Painting each region with the label most of its pixels have gives nearly the true label map."""
    method = SuperpixelMethod(segments=12, compactness=40, shrink=shrink)
    right = []
    for scene in draw_scenes(2, 0, 40):
        picture, labels = render(scene)
        ids = compute_superpixels(picture, method)
        assert ids.shape == labels.shape
        assert 8 <= len(np.unique(ids)) <= 14
        votes = np.zeros((ids.max() + 1, 16), dtype=int)
        np.add.at(votes, (ids.ravel(), labels.ravel()), 1)
        right.append((votes.argmax(axis=1)[ids] == labels).mean())
    assert np.mean(right) > 0.97


def test_odd_sizes_are_covered_when_shrunk() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (37, 53, 3), dtype=np.uint8)
    assert compute_superpixels(picture, SuperpixelMethod(segments=6, shrink=4)).shape == (37, 53)
    with pytest.raises(ValueError, match="cannot be shrunk"):
        compute_superpixels(picture[:9], SuperpixelMethod(shrink=4))


def test_without_fast_slic_scikit_image_takes_over_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("skimage")
    monkeypatch.setitem(sys.modules, "fast_slic", None)
    superpixels._slic.cache_clear()
    picture, _ = render(draw_scenes(2, 0, 1)[0])
    try:
        with pytest.warns(UserWarning, match="fast-slic is not installed"):
            ids = compute_superpixels(picture, SuperpixelMethod())
        compute_superpixels(picture, SuperpixelMethod())  # warnings are errors here: it does not warn again
        assert ids.shape == (96, 96)
        assert ids.min() == 0
    finally:
        superpixels._slic.cache_clear()


def test_felzenszwalb_is_that_of_scikit_image() -> None:
    segmentation = pytest.importorskip("skimage.segmentation")
    method = SuperpixelMethod(method="felzenszwalb", scale=60, sigma=0.7, min_size=30)
    picture, _ = render(draw_scenes(2, 0, 1)[0])
    expected = segmentation.felzenszwalb(picture, scale=60, sigma=0.7, min_size=30)
    assert expected.max() > 3
    np.testing.assert_array_equal(compute_superpixels(picture, method), expected)


def test_more_regions_than_int16_numbers_are_refused() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (190, 190, 3), dtype=np.uint8)
    method = SuperpixelMethod(method="felzenszwalb", scale=1e-6, sigma=0, min_size=1)
    with pytest.raises(ValueError, match=r"regions, more than 32767: raise min_size \(1\)"):
        compute_superpixels(noise, method)


@pytest.mark.parametrize(("height", "width"), [(1, 50), (2, 2), (3, 900), (7, 9)])
def test_pictures_on_which_slic_would_kill_the_process_are_refused(height: int, width: int) -> None:
    picture = np.zeros((height, width, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match=f"{width} x {height} pixels is too small for 64 superpixels"):
        compute_superpixels(picture, SuperpixelMethod(segments=64))


@pytest.mark.parametrize(("height", "width"), [(4, 16), (4, 900), (16, 4), (8, 8)])
def test_the_smallest_pictures_have_superpixels(height: int, width: int) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    assert compute_superpixels(picture, SuperpixelMethod(segments=64)).shape == (height, width)


@pytest.mark.parametrize(
    ("text", "parameters"),
    [
        ("slic:64", {"segments": 64, "compactness": 20.0}),
        ("slic:9,3.5", {"segments": 9, "compactness": 3.5}),
        ("slic", {"segments": 12}),
        ("felzenszwalb:224,0.9,224", {"scale": 224.0, "sigma": 0.9, "min_size": 224}),
        ("felzenszwalb:100", {"scale": 100.0, "min_size": 224}),
    ],
)
def test_methods_are_read_from_text(text: str, parameters: dict[str, object]) -> None:
    method = method_from_text(text)
    assert method is not None
    assert method.method == text.partition(":")[0]
    assert parameters.items() <= method.parameters().items()
    assert ("segments" in method.parameters()) == (method.method == "slic")
    assert SuperpixelMethod(**method.parameters()) == method


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slick:64", "superpixels 'slick:64' are not known: use slic:SEGMENTS"),
        ("slic:1,2,3", "are not known"),
        ("slic:many", "segments 'many' is not allowed"),
        ("slic:", "segments '' is not allowed"),
        ("slic:1", "segments '1' is not allowed"),
        ("felzenszwalb:224,-1", "sigma '-1' is not allowed"),
    ],
)
def test_methods_that_are_not_known_are_refused(text: str, message: str) -> None:
    assert method_from_text("none") is None
    with pytest.raises(ValueError, match=message) as caught:
        method_from_text(text)
    assert "\n" not in str(caught.value)
