from __future__ import annotations

import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from segclip.data_pipelines.building.options import Options
from segclip.data_pipelines.building.preparing import Preparer
from segclip.data_pipelines.building.source import Raw, RefusedError
from segclip.data_pipelines.label_maps import decode_label_map
from segclip.data_pipelines.superpixels import SuperpixelMethod, compute_superpixels
from tests.data_pipelines.photos import photo

PLAIN = Options(superpixels=None)


def raw(picture: bytes, caption: str | bytes | None = "a cat", extension: str | None = None) -> Raw:
    return Raw("k", "o", "f", picture, extension, caption, {"json": b"{}"})


def test_a_picture_stays_as_it_is_and_is_called_what_it_is() -> None:
    for number, kind in enumerate(("jpg", "png", "webp")):
        _, content, _ = photo(number)
        preparer = Preparer(PLAIN)
        members, digest = preparer.members(raw(content))
        assert members == {kind: content, "json": b"{}", "txt": b"a cat"}
        assert digest == hashlib.sha256(content).digest()
        assert not +preparer.changes
        kept, _ = preparer.members(raw(content, None, "jpeg"))
        assert kept == {"jpeg": content, "json": b"{}"}


def test_larger_pictures_are_made_smaller() -> None:
    _, content, _ = photo(1, side=60)
    preparer = Preparer(Options(superpixels=None, resize=20))
    members, digest = preparer.members(raw(content))
    with Image.open(io.BytesIO(members["jpg"])) as image:
        assert (image.format, image.size) == ("JPEG", (30, 20))
        found = np.asarray(image).astype(int)
    wanted = np.asarray(
        Image.open(io.BytesIO(content)).convert("RGB").resize((30, 20), Image.Resampling.BICUBIC)
    )
    assert np.abs(found - wanted).mean() < 6
    assert digest == hashlib.sha256(content).digest()
    assert preparer.changes["pictures resized"] == 1
    assert "png" in Preparer(Options(superpixels=None, resize=60)).members(raw(content))[0]


def test_superpixels_are_those_of_the_stored_picture() -> None:
    _, content, _ = photo(0, side=64)
    method = SuperpixelMethod(segments=9)
    members, _ = Preparer(Options(superpixels=method, resize=32)).members(raw(content))
    stored = np.asarray(Image.open(io.BytesIO(members["jpg"])))
    ids = decode_label_map(members["superpixels.png"])
    assert ids.shape == (32, 48)
    np.testing.assert_array_equal(ids, compute_superpixels(stored, method))


def test_the_work_on_a_picture_is_done_once_for_its_captions() -> None:
    _, content, _ = photo(0)
    preparer = Preparer(Options(resize=32))
    one, _ = preparer.members(raw(content, "one"))
    other, _ = preparer.members(raw(content, "&amp; other"))
    assert one["jpg"] is other["jpg"]
    assert (one["txt"], other["txt"]) == (b"one", b"& other")
    assert preparer.changes == {"pictures resized": 2, "captions repaired": 1}


def bomb() -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (14000, 14000)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("picture", "cause"),
    [
        (b"", "empty picture file"),
        (b" <html>", "web page instead of a picture"),
        (b"GIF89a", "no JPEG, PNG or WebP"),
        (photo(0)[1][:9], "no JPEG, PNG or WebP"),
        (photo(1)[1][:-30], "picture does not decode"),
        (photo(0, side=8)[1], "picture too small"),
        (bomb(), "too many pixels"),
    ],
)
def test_bad_pictures_are_refused_with_their_cause(picture: bytes, cause: str) -> None:
    preparer = Preparer(PLAIN)
    with pytest.raises(RefusedError) as caught:
        preparer.members(raw(picture, "&amp;"))
    assert caught.value.cause == cause
    assert not preparer.changes
    assert preparer.members(raw(photo(0)[1]))  # the next is not touched by it


def test_pictures_without_superpixels_and_empty_captions_are_refused() -> None:
    preparer = Preparer(Options(superpixels=SuperpixelMethod(segments=9999), min_side=1))
    with pytest.raises(RefusedError, match="too small for 9999 superpixels") as caught:
        preparer.members(raw(photo(0)[1]))
    assert caught.value.cause == "no superpixels"
    with pytest.raises(RefusedError) as caught:
        preparer.members(raw(photo(0)[1], b" \x00\n"))
    assert caught.value.cause == "empty caption"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per_shard": 0}, "--per-shard is 0: it must be from 1"),
        ({"resize": 4}, "--resize is 4: it must be from 8"),
        ({"quality": 101}, "--quality is 101: it must be from 1 to 100"),
        ({"longest_caption": 0}, "--longest-caption is 0"),
        ({"min_side": 0}, "--min-side is 0"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Options(**options)
