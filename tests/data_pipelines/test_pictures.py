from __future__ import annotations

import io
import struct
import zlib
from contextlib import suppress

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


def decode(data: bytes | bytearray, max_pixels: int = 10**6) -> Tensor:
    return decode_picture(data, max_pixels)


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


def test_a_jpeg_whose_header_states_huge_pixels_is_refused_unread() -> None:
    data = bytearray(encoded("JPEG"))
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", 60_000, 60_000)
    with pytest.raises(PictureError, match=r"60000 x 60000 pixels, more than data.max_pixels=100000000"):
        decode(data, 100_000_000)
    # Where so many pixels are allowed, its few bytes cannot hold them.
    with pytest.raises(PictureError, match=r"unfold to 60000 x 60000 pixels") as caught:
        decode(data, 2**40)
    assert caught.value.cause == "too_large"


def test_a_small_file_that_unfolds_to_much_is_refused_unread() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (3000, 3000)).save(buffer, "PNG")
    data = buffer.getvalue()
    assert len(data) < 30_000
    with pytest.raises(
        PictureError, match=r"3000 x 3000 pixels, more than data.max_decompression=500"
    ) as caught:
        decode_picture(data, 10_000_000, 500)
    assert caught.value.cause == "too_large"
    assert decode_picture(data, 10_000_000, 5000).shape == (3, 3000, 3000)


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


def png_of(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG written by hand, for forms that Pillow does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = zlib.compress(rows)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_sixteen_bits_are_cut_to_eight() -> None:
    high = np.arange(12, dtype=np.uint8).reshape(2, 6) * 20
    wide = (high.astype(int) * 256 + 77).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in wide)
    grey, colour = decode(png_of(6, 2, 16, 0, rows)), decode(png_of(2, 2, 16, 2, rows))
    assert grey.dtype == colour.dtype == torch.uint8
    np.testing.assert_array_equal(grey.numpy(), np.broadcast_to(high, (3, 2, 6)))
    np.testing.assert_array_equal(colour.permute(1, 2, 0).numpy(), high.reshape(2, 2, 3))


def test_other_forms_of_png_become_rgb() -> None:
    for mode in ("1", "L", "LA", "P", "RGBA"):
        assert decode(encoded("PNG", mode=mode)).shape == (3, 21, 37)
    transparent = encoded("PNG", mode="P", transparency=bytes(range(200)))
    np.testing.assert_array_equal(decode(transparent), decode(encoded("PNG", mode="P")))


def sums_made_right(data: bytearray) -> None:
    """Write the checksums of a PNG's chunks anew, as whoever means harm would."""
    at = 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        if at + 12 + length > len(data):
            return
        struct.pack_into(">I", data, at + 8 + length, zlib.crc32(data[at + 4 : at + 8 + length]))
        at += 12 + length


def test_a_damaged_png_is_an_error_and_not_the_end_of_the_process() -> None:
    """torchvision's decoder takes the process down where a byte of the compressed pixels is changed."""
    data = encoded("PNG")
    for byte in range(8, len(data)):
        changed = bytearray(data)
        changed[byte] ^= 16
        with pytest.raises(PictureError):
            decode(changed)
        sums_made_right(changed)
        with suppress(PictureError):
            assert decode(changed).shape[0] == 3


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_a_damaged_picture_is_decoded_or_an_error(kind: str) -> None:
    data, random = encoded(kind), np.random.default_rng(0)
    for _ in range(300):
        changed = bytearray(data)
        for byte in random.integers(len(data), size=3):
            changed[byte] = random.integers(256)
        with suppress(PictureError):
            assert decode(changed).dtype == torch.uint8


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_cut_picture_is_an_error(kind: str) -> None:
    data = encoded(kind)
    for cut in (20, len(data) // 3, len(data) // 2):
        with pytest.raises(ValueError, match=r"header|decode"):
            decode(data[:cut])


def test_a_plain_picture_of_usual_size_is_no_bomb() -> None:
    data = encoded_plain(400)
    assert 10 * len(data) < 3 * 400 * 400
    assert decode_picture(data, 10**6, 10).shape == (3, 400, 400)


def encoded_plain(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), "white").save(buffer, "PNG")
    return buffer.getvalue()
