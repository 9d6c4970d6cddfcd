"""Label maps as lossless PNG: one byte a pixel, written without row filters so that reading back is one
inflate.

Any PNG reader opens these files. Maps written by other tools (row filters, 16 bits, palettes) go through
Pillow.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from segclip.data_pipelines.pictures import PictureError, open_png

__all__ = ["SUPERPIXELS", "decode_label_map", "encode_label_map"]

SUPERPIXELS = "superpixels.png"
"""Extension of the member of a sample that is its map of superpixels."""

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY_8 = b"\x08\x00\x00\x00\x00"  # bit depth 8, greyscale, deflate, adaptive filters, not interlaced
_HEADER_END = 33  # signature 8 + IHDR: length 4, type 4, content 13, checksum 4


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def encode_label_map(labels_HW: NDArray[np.integer]) -> bytes:
    """A label map as PNG: 8 bits a pixel, or 16 where an id exceeds 255.

    Raises:
        ValueError: ids outside 0 .. 65535.
    """
    height, width = labels_HW.shape
    low, high = int(labels_HW.min()), int(labels_HW.max())
    if low < 0 or high > 0xFFFF:
        raise ValueError(f"label map holds ids {low} .. {high}: a PNG keeps 0 .. 65535")
    dtype, depth = (np.dtype(np.uint8), b"\x08") if high <= 0xFF else (np.dtype(">u2"), b"\x10")
    rows = np.zeros((height, 1 + width * dtype.itemsize), dtype=np.uint8)
    rows[:, 1:] = labels_HW.astype(dtype).view(np.uint8).reshape(height, -1)
    header = struct.pack(">II", width, height) + depth + _GREY_8[1:]
    body = zlib.compress(rows.tobytes(), 3)
    return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def decode_label_map(data: bytes | memoryview, shape: tuple[int, int] | None = None) -> NDArray[np.integer]:
    """The ids of a PNG label map: uint8 or uint16 [H, W].

    Args:
        data: the file.
        shape: height and width it must have; a map of another size is refused from its header.

    Raises:
        ValueError: the bytes are no PNG, one with colour channels, or one of another size.
    """
    if bytes(data[:8]) != _SIGNATURE:
        raise ValueError(f"a superpixel map must be a PNG; it starts with {bytes(data[:8])!r}")
    if len(data) < _HEADER_END:
        raise ValueError("the header of the superpixel map is cut")
    w, h = struct.unpack(">II", data[16:24])
    if shape is not None and (h, w) != shape:
        height, width = shape
        raise ValueError(
            f"its superpixel map is {w} x {h} but its picture {width} x {height} pixels: compute the maps again"
        )
    if bytes(data[24:29]) == _GREY_8 and bytes(data[_HEADER_END + 4 : _HEADER_END + 8]) == b"IDAT":
        fast = _decode_unfiltered(data)
        if fast is not None:
            return fast
    try:
        image = open_png(memoryview(data))
    except PictureError as error:
        raise ValueError(f"superpixel map does not decode: {error}") from error
    if len(image.getbands()) != 1:
        raise ValueError(f"a superpixel map has one channel of ids; this PNG has {len(image.getbands())}")
    ids_HW = np.asarray(image)
    return ids_HW.astype(np.uint8 if ids_HW.dtype == bool else ids_HW.dtype)


def _decode_unfiltered(data: bytes | memoryview) -> NDArray[np.uint8] | None:
    """Inflate an 8-bit grey PNG of one IDAT chunk whose rows carry no filter; None for any other."""
    width, height = struct.unpack(">II", data[16:24])
    (length,) = struct.unpack(">I", data[_HEADER_END : _HEADER_END + 4])
    expected = height * (width + 1)
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(data[_HEADER_END + 8 : _HEADER_END + 8 + length], expected + 1)
    except zlib.error as error:
        raise ValueError(f"superpixel map does not decode: {error}") from error
    if len(raw) != expected or not inflater.eof:
        return None
    rows = np.frombuffer(raw, dtype=np.uint8).reshape(height, width + 1)
    return None if rows[:, 0].any() else rows[:, 1:]
