"""Shards that someone wrote to do harm, read by the whole way: builder and training stream, under both policies."""

from __future__ import annotations

import io
import pickle
import struct
import zlib
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segclip.data_pipelines.building.build import build_set
from segclip.data_pipelines.building.merge import merge_set
from segclip.data_pipelines.building.open_source import open_source
from segclip.data_pipelines.building.options import Options
from segclip.data_pipelines.config import DataConfig
from segclip.data_pipelines.label_maps import encode_label_map
from segclip.data_pipelines.loader import BatchStream, build_loader
from segclip.data_pipelines.manifest import Manifest, describe
from segclip.data_pipelines.shard_writer import pack
from segclip.data_pipelines.tar import PICKLE_LIKE


def encoded(kind: str, side: int = 32, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (side, side), "white").save(buffer, kind)
    return buffer.getvalue()


def jpeg_bomb() -> bytes:
    """A whole small JPEG whose header states 60,000 x 60,000 pixels."""
    data = bytearray(encoded("JPEG"))
    struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, 60_000, 60_000)
    return bytes(data)


def png_bomb(side: int = 60_000) -> bytes:
    """A few hundred bytes that state 60,000 x 60,000 pixels, with sums that are right."""
    data = bytearray(encoded("PNG"))
    struct.pack_into(">II", data, 16, side, side)
    struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    return bytes(data)


def torn(data: bytes) -> bytes:
    """Compressed pixels changed in the middle."""
    changed = bytearray(data)
    changed[len(data) // 2] ^= 0xFF
    return bytes(changed)


GOOD = {"jpg": encoded("JPEG"), "txt": "猫 and ünïcödé \U0001f469\u200d\U0001f467 e\u0301".encode()}
MAP = encode_label_map(np.zeros((32, 32), dtype=int))
BAD: dict[str, tuple[dict[str, bytes], str, str]] = {
    # members, cause in training, cause in the builder
    "jpeg bomb": ({**GOOD, "jpg": jpeg_bomb()}, "picture_too_large", "too many pixels"),
    "png bomb": ({"png": png_bomb(), "txt": b"x"}, "picture_too_large", "too many pixels"),
    "small bomb": ({"png": png_bomb(9_000), "txt": b"x"}, "picture_too_large", "picture does not decode"),
    "torn png": (
        {"png": torn(encoded("PNG", 64)), "txt": b"x"},
        "picture_undecodable",
        "picture does not decode",
    ),
    "map bomb": ({**GOOD, "superpixels.png": png_bomb()}, "superpixels", ""),
    "torn map": ({**GOOD, "superpixels.png": torn(MAP)}, "superpixels", ""),
    "no caption": ({**GOOD, "txt": b""}, "caption_empty", "empty caption"),
    "spaces": ({**GOOD, "txt": " \n\u3000\u00a0".encode()}, "caption_empty", "empty caption"),
}


def write(folder: Path, samples: list[dict[str, bytes]]) -> str:
    content, count = pack((f"{n:03d}", members) for n, members in enumerate(samples))
    folder.mkdir()
    (folder / "00000.tar").write_bytes(content)
    manifest = Manifest(shards=(describe("00000.tar", content, count),))
    (folder / "manifest.json").write_bytes(manifest.to_json())
    return str(folder)


def stream(url: str, **changes: Any) -> BatchStream:
    config = DataConfig(
        shards=url,
        image_size=16,
        words=12,
        workers=0,
        lanes=1,
        shuffle_block=4,
        max_bad_samples=0.5,
        **changes,
    )
    return build_loader(config, patch_size=4, rank=0, world_size=1, batch_size=4, seed=0)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_sample_stops_the_run_or_is_replaced_and_counted(tmp_path: Path, name: str) -> None:
    members, cause, _ = BAD[name]
    url = write(tmp_path / "set", [GOOD, members, GOOD, GOOD])
    with pytest.raises(ValueError, match=r"sample '001' of shard .*/00000.tar: ") as caught:
        next(iter(stream(url)))
    assert "\n" not in str(caught.value)
    tolerant = stream(url, on_error="quarantine")
    for batch in islice(tolerant, 2):
        assert batch.captions == [GOOD["txt"].decode()] * 4
    assert {each: n for each, n in tolerant.counts.items() if "skips" in each} == {
        f"skips/samples/{cause}": 2
    }


def test_the_builder_refuses_them_by_cause(tmp_path: Path) -> None:
    url = write(tmp_path / "set", [GOOD, *(members for members, _, _ in BAD.values()), GOOD])
    (tmp_path / "set" / "manifest.json").unlink()
    out = str(tmp_path / "out")
    build_set(out, open_source([url], per_shard=100), Options(superpixels=None))
    merged = merge_set(out)
    expected: dict[str, int] = {}
    for _, _, cause in BAD.values():
        if cause:  # maps are computed anew, and those of others are not taken along
            expected[cause] = expected.get(cause, 0) + 1
    assert merged.rejected == expected
    assert merged.manifest.samples == 2 + 2
    assert {caption for batch in islice(stream(out), 1) for caption in batch.captions} == {
        "猫 and ünïcödé \U0001f469\u200d\U0001f467 \u00e9"  # composed by ftfy
    }


def test_pickles_are_unpickled_nowhere_on_the_way(tmp_path: Path) -> None:
    marker = tmp_path / "executed"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return (open, (str(marker), "w"))

    payload = pickle.dumps(Evil())
    pickle.loads(payload).close()  # it would
    assert marker.exists()
    marker.unlink()
    evil = {**GOOD, **dict.fromkeys(sorted(PICKLE_LIKE), payload), "x.PKL": payload, "json": payload}
    url = write(tmp_path / "set", [evil] * 4)
    assert len(next(iter(stream(url)))) == 4
    (tmp_path / "set" / "manifest.json").unlink()
    build_set(str(tmp_path / "out"), open_source([url], per_shard=100), Options(superpixels=None))
    merge_set(str(tmp_path / "out"))
    # In place of a picture, a caption, or a map it is bytes that do not decode.
    for place, cause in (("jpg", "picture_unknown"), ("superpixels.png", "superpixels")):
        url = write(tmp_path / place, [GOOD, {**GOOD, place: payload}, GOOD, GOOD])
        tolerant = stream(url, on_error="quarantine")
        next(iter(tolerant))
        assert tolerant.counts[f"skips/samples/{cause}"] == 1
    assert not marker.exists()
