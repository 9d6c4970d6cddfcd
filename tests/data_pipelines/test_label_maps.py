from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from segclip.data_pipelines.label_maps import decode_label_map, encode_label_map


@pytest.mark.parametrize("top", [2, 256, 65536])
def test_maps_come_back_and_other_readers_agree(top: int) -> None:
    ids = np.random.default_rng(0).integers(0, top, (31, 45))
    ids[0, 0] = top - 1
    data = encode_label_map(ids)
    np.testing.assert_array_equal(decode_label_map(data), ids)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), ids)


def test_maps_of_other_writers_are_read() -> None:
    ids = np.repeat(np.arange(24, dtype=np.uint8)[:, None], 40, axis=1)
    buffer = io.BytesIO()
    Image.fromarray(ids).save(buffer, "PNG", optimize=True)
    np.testing.assert_array_equal(decode_label_map(buffer.getvalue()), ids)


def test_a_palette_is_ids_and_a_damaged_map_an_error() -> None:
    ids = (np.arange(35 * 20).reshape(35, 20) // 7 % 19).astype(np.uint8)
    buffer = io.BytesIO()
    palette = Image.fromarray(ids).convert("P")
    palette.putpalette(list(range(255, -1, -1)) * 3)
    palette.save(buffer, "PNG")
    data = buffer.getvalue()
    np.testing.assert_array_equal(decode_label_map(data), ids)
    for written in (data, encode_label_map(ids), encode_label_map(ids.astype(int) + 300)):
        for byte in range(33, len(written) - 12):
            changed = bytearray(written)
            changed[byte] ^= 16
            with suppress(ValueError):  # the quick way does not read the sum of a chunk, but zlib's own
                np.testing.assert_array_equal(decode_label_map(bytes(changed)), decode_label_map(written))


def test_what_is_no_map_is_refused() -> None:
    with pytest.raises(ValueError, match="must be a PNG"):
        decode_label_map(b"<html>")
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    with pytest.raises(ValueError, match="one channel of ids; this PNG has 3"):
        decode_label_map(buffer.getvalue())
    data = encode_label_map(np.ones((20, 20), dtype=int))
    for cut in range(8, len(data) - 16):
        with pytest.raises(ValueError, match=r"map"):
            decode_label_map(data[:cut])
    with pytest.raises(ValueError, match=r"keeps 0 .. 65535"):
        encode_label_map(np.full((2, 2), 70000))


def test_a_map_of_another_size_is_refused_from_its_header() -> None:
    """A bomb: a few kilobytes that would unfold to 400 MB."""
    data = bytearray(encode_label_map(np.zeros((30, 40), dtype=int)))
    data[16:24] = struct.pack(">II", 20000, 20000)
    with pytest.raises(
        ValueError, match="its superpixel map is 20000 x 20000 but its picture 40 x 30 pixels"
    ):
        decode_label_map(bytes(data), (30, 40))
    good = encode_label_map(np.ones((30, 40), dtype=int))
    assert decode_label_map(good, (30, 40)).shape == (30, 40)


def test_a_map_is_not_inflated_beyond_its_size() -> None:
    """A header of 30 x 40 over compressed zeros of 64 MiB."""
    good = encode_label_map(np.zeros((40, 30), dtype=int))
    body = zlib.compress(bytes(64 << 20))
    chunk = struct.pack(">I", len(body)) + b"IDAT" + body + struct.pack(">I", zlib.crc32(b"IDAT" + body))
    tracemalloc.start()
    try:
        with suppress(ValueError):
            decode_label_map(good[:33] + chunk + good[-12:], (40, 30))
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
