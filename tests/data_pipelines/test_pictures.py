from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from segclip.data_pipelines.pictures import PictureError, decode_picture, picture_size


def encoded(kind: str, size: tuple[int, int] = (37, 21), mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    gradient = np.linspace(0, 255, size[0] * size[1]).reshape(size[1], size[0]).astype(np.uint8)
    Image.fromarray(gradient).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def decode(data: bytes, max_pixels: int = 10**6) -> Tensor:
    return decode_picture(torch.frombuffer(bytearray(data), dtype=torch.uint8), memoryview(data), max_pixels)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {}), ("WEBP", {"lossless": True})],
)
def test_sizes_and_pixels(kind: str, options: dict[str, object]) -> None:
    data = encoded(kind, **options)
    assert picture_size(data) == (21, 37)
    pixels = decode(data)
    assert pixels.shape == (3, 21, 37)
    assert pixels.dtype == torch.uint8
    truth = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(pixels.permute(1, 2, 0).numpy().astype(int) - truth).max() <= 3


def test_grey_and_transparent_pictures_become_rgb() -> None:
    assert decode(encoded("JPEG", mode="L")).shape == (3, 21, 37)
    assert decode(encoded("PNG", mode="RGBA")).shape == (3, 21, 37)


def test_a_small_file_with_huge_pixels_is_refused_unread() -> None:
    buffer = io.BytesIO()
    Image.new("1", (14000, 14000)).save(buffer, "PNG")
    assert len(buffer.getvalue()) < 60_000
    with pytest.raises(ValueError, match=r"14000 x 14000 pixels, more than data.max_pixels=1000000"):
        decode(buffer.getvalue())


def test_a_small_file_that_unfolds_to_much_is_refused_unread() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (3000, 3000)).save(buffer, "PNG")
    data = buffer.getvalue()
    assert len(data) < 30_000
    tensor = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    with pytest.raises(
        PictureError, match=r"3000 x 3000 pixels, more than data.max_decompression=500"
    ) as caught:
        decode_picture(tensor, memoryview(data), 10_000_000, 500)
    assert caught.value.cause == "too_large"
    assert decode_picture(tensor, memoryview(data), 10_000_000, 5000).shape == (3, 3000, 3000)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html><html>", "looks like a web page"),
        (b"not a picture", "starts with"),
        (b"\xff\xd8\xff", "header is cut"),
        (b"\x89PNG\r\n\x1a\n\0\0", "header is cut"),
    ],
)
def test_what_is_no_picture_is_named(data: bytes, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        picture_size(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_cut_picture_is_an_error(kind: str) -> None:
    data = encoded(kind)
    for cut in (20, len(data) // 3, len(data) // 2):
        with pytest.raises(ValueError, match=r"header|decode"):
            decode(data[:cut])
