from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from segclip.eval.datasets.images import read_image, read_label


@pytest.mark.parametrize("side", [9_500, 14_000])
def test_a_huge_header_is_refused_before_decoding(tmp_path, bomb, side) -> None:
    # 9,500 squared makes Pillow warn, 14,000 squared makes it raise; either is one ValueError here.
    with pytest.raises(ValueError, match=r"the 89,478,485 (pixels )?that are accepted"):
        read_image(bomb(tmp_path / "bomb.png", side))


def test_the_bound_holds_where_pillows_own_is_switched_off(tmp_path, bomb, monkeypatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(ValueError, match="is 14000 x 14000 pixels, more than the 89,478,485"):
        read_image(bomb(tmp_path / "bomb.png", 14_000))


@pytest.mark.parametrize("content", [b"", b"no picture", b"\xff\xd8\xff\xe0 cut", b"\x89PNG\r\n\x1a\n"])
def test_files_that_are_no_pictures(tmp_path, content) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.jpg does not decode as an image"):
        read_image(path)


def test_a_cut_picture_is_refused(tmp_path, pictures) -> None:
    path = tmp_path / "cut.jpg"
    Image.fromarray(pictures(64, 64)).save(path)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(ValueError, match="does not decode"):
        read_image(path)


def test_missing_file_and_folder(tmp_path) -> None:
    with pytest.raises(ValueError, match="no such image file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(ValueError, match="is a folder"):
        read_image(tmp_path)


def test_modes_become_rgb(tmp_path) -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    rgb = np.repeat(grey[..., None], 3, 2)
    for name, picture in {
        "grey.png": Image.fromarray(grey),
        "deep.png": Image.fromarray(grey.astype(np.uint16) * 257),
        "clear.png": Image.fromarray(np.dstack([rgb, np.full((8, 8), 255, np.uint8)])),
    }.items():
        picture.save(tmp_path / name)
        found = read_image(tmp_path / name)
        assert found.dtype == np.uint8
        assert np.abs(found.astype(int) - rgb).max() <= 1, name
    Image.fromarray(np.zeros((2, 2, 4), np.uint8)).save(tmp_path / "through.png")
    assert (read_image(tmp_path / "through.png") == 255).all()


def test_pixels_that_are_no_number_are_black(tmp_path) -> None:
    values = np.array([[np.nan, 200.0], [np.inf, -np.inf]], np.float32)
    Image.fromarray(values).save(tmp_path / "x.tif")
    assert read_image(tmp_path / "x.tif")[..., 0].tolist() == [[0, 0], [255, 0]]


def test_upright_follows_exif_only_when_asked(tmp_path) -> None:
    picture = Image.fromarray(np.zeros((4, 6, 3), np.uint8))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").shape == (4, 6, 3)
    assert read_image(tmp_path / "turned.jpg", upright=True).shape == (6, 4, 3)


def test_labels_are_indices_not_colours(tmp_path) -> None:
    label = np.array([[0, 3], [255, 20]], dtype=np.uint8)
    picture = Image.fromarray(label)
    picture.putpalette([200] * 768)
    picture.save(tmp_path / "a.png")
    Image.fromarray(label).save(tmp_path / "b.png")
    assert (read_label(tmp_path / "a.png") == label).all()
    assert (read_label(tmp_path / "b.png") == label).all()
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "c.png")
    with pytest.raises(ValueError, match="is a RGB image; labels are class numbers"):
        read_label(tmp_path / "c.png")
