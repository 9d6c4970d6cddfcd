from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image

from segclip.data_pipelines.label_maps import decode_label_map, encode_label_map
from segclip.data_pipelines.scenes.scene import draw_scenes
from segclip.data_pipelines.shard_writer import pack, write_set
from segclip.data_pipelines.stats import Distribution, set_stats
from segclip.data_pipelines.superpixels import SuperpixelMethod
from tests.data_pipelines.photos import photo, samples_of


def test_a_set_is_measured(scene_set: Path) -> None:
    told: list[int] = []
    stats = set_stats(str(scene_set), report=told.append)
    assert (stats.shards, stats.samples, stats.read) == (6, 100, 100)
    assert told == [17, 17, 17, 17, 17, 15]
    assert stats.bytes == sum(path.stat().st_size for path in scene_set.glob("*.tar"))
    assert stats.superpixels is not None
    assert stats.superpixels["segments"] == 12
    assert stats.without == {"picture": 0, "caption": 0, "superpixels": 0}
    captions = [scene.caption for scene in draw_scenes(5, 0, 100)]
    assert stats.distributions["caption: characters"] == Distribution.of([len(each) for each in captions])
    tokens = [len(SimpleTokenizer().encode(each)) + 2 for each in captions]
    assert stats.distributions["caption: tokens"] == Distribution.of(tokens)
    maps = [
        decode_label_map(sample["superpixels.png"])
        for shard in samples_of(scene_set).values()
        for sample in shard.values()
    ]
    assert stats.distributions["superpixels"] == Distribution.of([len(np.unique(each)) for each in maps])
    assert stats.distributions["picture: short side"] == Distribution(100, 48, 48, 48, 48, 48)


def test_some_shards_stand_for_all(scene_set: Path) -> None:
    stats = set_stats(str(scene_set), shards=2)
    assert (stats.samples, stats.read) == (100, 32)
    with pytest.raises(ValueError, match="--shards is 0"):
        set_stats(str(scene_set), shards=0)


def make_odd(number: int) -> tuple[bytes, int]:
    _, content, _ = photo(0)
    ids = encode_label_map(np.array([[0, 300], [7, 7]]))
    return pack(
        [
            ("a", {"jpg": content, "txt": b" "}),
            ("b", {"txt": b"! " * 200, "superpixels.png": ids}),
        ]
    )


def test_what_samples_lack_is_counted(tmp_path: Path) -> None:
    write_set(
        str(tmp_path),
        make_odd,
        1,
        processes=1,
        superpixels=SuperpixelMethod(method="felzenszwalb"),
        source={},
    )
    stats = set_stats(str(tmp_path))
    assert stats.without == {"picture": 1, "caption": 1, "superpixels": 1}
    assert stats.distributions["superpixels"].median == 3
    assert stats.distributions["caption: tokens"].median == 77
    assert stats.distributions["picture: long side"].count == 1
    assert stats.superpixels is not None
    assert "segments" not in stats.superpixels


def make_broken(number: int) -> tuple[bytes, int]:
    return pack([("a", {"jpg": b"<html>", "txt": b"x"})])


def make_bomb(number: int) -> tuple[bytes, int]:
    """A map whose header states 60,000 x 60,000 ids beside a picture of 4 x 4."""
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    ids = bytearray(encode_label_map(np.zeros((4, 4), dtype=int)))
    ids[16:24] = (60_000).to_bytes(4, "big") * 2
    return pack([("a", {"png": buffer.getvalue(), "txt": b"x", "superpixels.png": bytes(ids)})])


def test_a_map_is_no_larger_than_its_picture(tmp_path: Path) -> None:
    write_set(str(tmp_path), make_bomb, 1, processes=1, superpixels=None, source={})
    with pytest.raises(ValueError, match=r"sample 'a' of shard .*its superpixel map is 60000 x 60000"):
        set_stats(str(tmp_path))


def test_a_broken_sample_is_named(tmp_path: Path) -> None:
    write_set(str(tmp_path), make_broken, 1, processes=1, superpixels=None, source={})
    with pytest.raises(ValueError, match=r"sample 'a' of shard .*00000.tar: .*looks like a web page"):
        set_stats(str(tmp_path))
