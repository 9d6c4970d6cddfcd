"""Decoding pictures: size from the header first, then uint8 pixels."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Container

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from torch import Tensor
from torchvision.io import ImageReadMode

from segclip.data_pipelines.errors import DataError

__all__ = [
    "PICTURE_EXTENSIONS",
    "PictureError",
    "decode_picture",
    "encode_jpeg",
    "open_png",
    "picture_extension",
    "picture_kind",
    "picture_size",
]

# Pixels that any file may unfold to, however small it is: a plain white PNG of 2300 x 2300.
SMALL_PICTURE = 16 << 20
PICTURE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
# The operators behind torchvision.io, called directly: from 0.29 on its Python functions warn at every call
# that torchcodec will replace them one day, which costs more than the call, and warnings are errors in our
# tests.
_OPERATORS = torch.ops.image
_RGB = ImageReadMode.RGB.value
# Markers that carry the size of a JPEG: SOF0 .. SOF15 without DHT (C4), JPG (C8) and DAC (CC).
_SIZE_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


class PictureError(DataError):
    """A picture that is not decoded; causes: ``cut``, ``empty``, ``web_page``, ``unknown``, ``too_large``,
    ``undecodable``."""


def picture_extension(extensions: Container[str]) -> str | None:
    """Which of a sample's members is its picture, by their extensions; None if none is."""
    return next((each for each in PICTURE_EXTENSIONS if each in extensions), None)


def picture_size(data: bytes | bytearray | memoryview) -> tuple[int, int]:
    """(height, width) from the header of a JPEG, PNG or WebP.

    Raises:
        PictureError: none of the three, or a header that is cut.
    """
    try:
        if data[:2] == b"\xff\xd8":
            return _jpeg_size(data)
        head = bytes(data[:32])
        if head[:8] == b"\x89PNG\r\n\x1a\n":
            width, height = struct.unpack(">II", head[16:24])
            return height, width
        if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
            return _webp_size(head)
    except (struct.error, IndexError) as error:
        raise PictureError("cut", "its header is cut") from error
    head = bytes(data[:32])
    cause, kind = (
        ("empty", "is empty")
        if not head
        else ("web_page", "looks like a web page")
        if head.lstrip()[:1] == b"<"
        else ("unknown", f"starts with {head[:8]!r}")
    )
    raise PictureError(cause, f"it is no JPEG, PNG or WebP: it {kind}")


def picture_kind(data: bytes | bytearray | memoryview) -> str:
    """The extension that fits a picture whose size ``picture_size`` could tell: ``jpg``, ``png`` or ``webp``."""
    return {0xFF: "jpg", 0x89: "png"}.get(data[0], "webp")


def encode_jpeg(picture_HW3: NDArray[np.uint8], quality: int = 90) -> bytes:
    """A picture, uint8 [H, W, 3], as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(picture_HW3).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _jpeg_size(data: bytes | bytearray | memoryview) -> tuple[int, int]:
    offset = 2
    while True:
        while data[offset + 1] == 0xFF:  # fill bytes before a marker
            offset += 1
        if data[offset] != 0xFF:
            raise PictureError("cut", "its JPEG header is corrupt")
        if data[offset + 1] in _SIZE_MARKERS:
            height, width = struct.unpack_from(">HH", data, offset + 5)
            return height, width
        offset += 2 + struct.unpack_from(">H", data, offset + 2)[0]


def _webp_size(head: bytes) -> tuple[int, int]:
    kind = head[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack("<HH", head[26:30])
        return height & 0x3FFF, width & 0x3FFF
    if kind == b"VP8L":
        (bits,) = struct.unpack("<I", head[21:25])
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    return int.from_bytes(head[27:30], "little") + 1, int.from_bytes(head[24:27], "little") + 1


def open_png(view: memoryview) -> Image.Image:
    """A PNG with its pixels decoded, in Pillow's mode for what it stores.

    By Pillow: the decoder of torchvision 0.29 takes the whole process down (SIGSEGV) where the compressed pixels of a
    PNG are damaged. Its size is for the caller to bound.

    Raises:
        PictureError: it does not decode.
    """
    try:
        _check_sums(view)
        # Not by Image.open, which has a bound of its own on pixels.
        image = PngImageFile(io.BytesIO(view))
        image.load()
        return image
    except Exception as error:  # of many types, on bytes that anyone may have written
        what = f"{type(error).__name__}: {error}"
        raise PictureError("undecodable", f"it does not decode ({what[:100]})") from error


def _check_sums(view: memoryview) -> None:
    """Raise ``ValueError`` unless all chunks of a PNG are whole: Pillow looks at the sums of few."""
    at, kind = 8, b""
    while kind != b"IEND":
        (length,) = struct.unpack_from(">I", view, at)
        kind, content = bytes(view[at + 4 : at + 8]), view[at + 4 : at + 8 + length]
        if struct.unpack_from(">I", view, at + 8 + length)[0] != zlib.crc32(content):
            raise ValueError(f"the checksum of its chunk {kind!r} does not match")
        at += 12 + length


def _png_pixels(view: memoryview) -> Tensor:
    """RGB pixels of a PNG, transparency left out, 16 bits cut to 8: uint8 [3, H, W]."""
    image = open_png(view)
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow's conversion would cut off at 255
        pixels_HW3 = np.repeat(
            (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)[..., None], 3, axis=2
        )
    else:
        opaque = image.convert("RGBA") if image.mode == "P" else image  # a palette may hold transparency
        pixels_HW3 = np.array(opaque.convert("RGB"))
    return torch.from_numpy(pixels_HW3).permute(2, 0, 1).contiguous()


def decode_picture(
    data: bytes | bytearray | memoryview, max_pixels: int, max_decompression: int = 1000
) -> Tensor:
    """RGB pixels of an encoded picture.

    Args:
        data: the file; where it may not be written to, it is copied.
        max_pixels: a picture with more is refused before anything is decoded.
        max_decompression: so is one, above 16 MiB of pixels, whose pixels take more than so many times its bytes.

    Returns:
        uint8 [3, H, W].

    Raises:
        PictureError: the picture is too large, or does not decode.
    """
    height, width = picture_size(data)
    if height * width > max_pixels:
        raise PictureError(
            "too_large", f"it has {width} x {height} pixels, more than data.max_pixels={max_pixels}"
        )
    if height * width == 0:
        raise PictureError("cut", f"its header states {width} x {height} pixels")
    if 3 * height * width > max(SMALL_PICTURE, max_decompression * len(data)):
        raise PictureError(
            "too_large",
            f"its {len(data)} bytes unfold to {width} x {height} pixels, more than "
            f"data.max_decompression={max_decompression} times as much",
        )
    kind, view = picture_kind(data), memoryview(data)
    if kind == "png":
        return _png_pixels(view)
    try:
        decode = _OPERATORS.decode_jpeg if kind == "jpg" else _OPERATORS.decode_image
        # A tensor of memory that may not be written to is one that torch warns of.
        whole = torch.frombuffer(bytearray(view) if view.readonly else view, dtype=torch.uint8)
        pixels: Tensor = decode(whole, _RGB, False)
        return pixels
    except RuntimeError as error:
        raise PictureError("undecodable", f"it does not decode ({str(error).splitlines()[0]})") from error
