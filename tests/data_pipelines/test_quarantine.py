"""Bad samples and shards under ``on_error: quarantine``."""

from __future__ import annotations

import io
import shutil
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from segclip.data_pipelines.config import DataConfig
from segclip.data_pipelines.loader import BatchStream, build_loader
from segclip.data_pipelines.manifest import Manifest, describe
from segclip.data_pipelines.order import Order
from segclip.data_pipelines.quarantine import check_budget, substitutes
from segclip.data_pipelines.samples import Batch, join_batches
from segclip.data_pipelines.shard_writer import pack
from segclip.data_pipelines.storage.config import StoreConfig
from segclip.data_pipelines.tar import group_samples
from tests.data_pipelines.faulty_server import Fault, faulty_server, reset_after, slow_first_byte, status


def _jpeg(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side)).save(buffer, "JPEG")
    return buffer.getvalue()


# What is done to some samples: shard, index -> changed members and the cause that is counted.
FAULTS: dict[tuple[int, int], tuple[dict[str, bytes], str]] = {
    (0, 3): ({"jpg": b"<html>no</html>"}, "picture_web_page"),
    (0, 4): ({"jpg": b""}, "picture_empty"),
    (1, 0): ({"txt": b" \n"}, "caption_empty"),
    (1, 16): ({"jpg": _jpeg(48)[:200]}, "picture_undecodable"),
    (4, 9): ({"superpixels.png": b"PNG"}, "superpixels"),
    (5, 1): ({"txt": b""}, "caption_empty"),
}
CUT = 2
"""The number of a shard that is cut: 17 samples less."""


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory, scene_set: Path) -> Path:
    """The scenes with six bad samples and one bad shard."""
    folder = tmp_path_factory.mktemp("broken") / "set"
    shutil.copytree(scene_set, folder)
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
    entries = []
    for number, entry in enumerate(manifest.shards):
        path = folder / entry.path
        content = path.read_bytes()
        samples = [
            (each.key, {name: content[a:b] for name, (a, b) in each.members.items()})
            for each in group_samples(content, entry.path)
        ]
        # The pictures of the scenes are PNG or JPEG; a fault replaces whichever there is.
        for (shard, index), (members, _) in FAULTS.items():
            if shard == number:
                key, before = samples[index]
                if "jpg" in members:
                    before = {name: held for name, held in before.items() if name not in ("png", "jpg")}
                samples[index] = (key, {**before, **members})
        content, count = pack(samples)
        entries.append(describe(entry.path, content, count))
        path.write_bytes(content[:3000] if number == CUT else content)
    (folder / "manifest.json").write_bytes(manifest.model_copy(update={"shards": tuple(entries)}).to_json())
    return folder


@pytest.fixture
def tolerant(config: DataConfig, broken: Path) -> DataConfig:
    """Whole pictures, so that equal pictures are equal samples."""
    return config.model_copy(
        update={
            "shards": str(broken),
            "on_error": "quarantine",
            "max_bad_samples": 0.2,
            "max_bad_shards": 0.2,
            "crop_scale": (1.0, 1.0),
            "crop_ratio": (1.0, 1.0),
        }
    )


def open_stream(config: DataConfig, batch_size: int = 12, start_step: int = 0, **place: int) -> BatchStream:
    place = {"rank": 0, "world_size": 1, **place}
    return build_loader(config, patch_size=4, seed=4, batch_size=batch_size, start_step=start_step, **place)


def pictures(batches: list[Batch]) -> list[bytes]:
    return [image.numpy().tobytes() for image in torch.cat([batch.images for batch in batches])]


def test_every_good_sample_keeps_its_place_and_bad_ones_are_filled_from_their_block(
    config: DataConfig, tolerant: DataConfig
) -> None:
    stream = open_stream(tolerant)
    found = pictures(list(islice(stream, 25)))  # three epochs
    whole = pictures(list(islice(open_stream(tolerant.model_copy(update={"shards": config.shards})), 25)))
    order = Order([17] * 5 + [15], lanes=6, block=7, seed=4)
    bad = {*FAULTS, *((CUT, index) for index in range(17))}
    picture_of = {order.sample(position): whole[position] for position in range(100)}
    assert len(set(picture_of.values())) == 100
    skipped = 0
    for position in range(300):
        sample = order.sample(position)
        if sample not in bad:
            assert found[position] == whole[position]
            continue
        skipped += 1
        place = order.place(position)
        block = [
            (int(shard), int(index))
            for shard, index in order.block_samples(place.epoch, place.lane, place.block)
        ]
        # The next good one in the block, written out once more.
        turned = [each for each in block[place.slot :] + block[: place.slot] if each not in bad]
        if turned:
            assert found[position] == picture_of[turned[0]]
        else:
            assert found[position] in {picture_of[each] for each in picture_of if each not in bad}
    assert skipped == 3 * 23
    counts = {name: count for name, count in stream.counts.items() if name.startswith("skips")}
    causes = Counter(f"skips/samples/{cause}" for _, cause in FAULTS.values())
    assert counts == {name: 3 * count for name, count in causes.items()} | {"skips/shards/length": 3 * 17}
    assert stream.bad_shards == {CUT}
    assert stream.counts["samples"] == 300


@pytest.mark.parametrize("world_size", [2, 3])
def test_substitutes_depend_neither_on_ranks_nor_on_a_resume(tolerant: DataConfig, world_size: int) -> None:
    whole = list(islice(open_stream(tolerant), 20))
    for start in (0, 7):
        ranks = [
            list(
                islice(
                    open_stream(
                        tolerant, 12 // world_size, start_step=start, rank=rank, world_size=world_size
                    ),
                    20 - start,
                )
            )
            for rank in range(world_size)
        ]
        for parts, batch in zip(zip(*ranks, strict=True), whole[start:], strict=True):
            joined = join_batches(parts)
            assert torch.equal(joined.images, batch.images)
            assert torch.equal(joined.superpixels, batch.superpixels)
            assert joined.captions == batch.captions


def test_a_cut_shard_is_named_with_its_offset(
    tolerant: DataConfig, broken: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The manifest was made of the cut file here, so the tar itself has to tell."""
    folder = tmp_path / "set"
    shutil.copytree(broken, folder)
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
    shards = list(manifest.shards)
    shards[CUT] = describe(shards[CUT].path, (folder / shards[CUT].path).read_bytes(), 17)
    (folder / "manifest.json").write_bytes(manifest.model_copy(update={"shards": tuple(shards)}).to_json())
    stream = open_stream(tolerant.model_copy(update={"shards": str(folder)}))
    list(islice(stream, 9))
    assert stream.counts["skips/shards/tar"] > 0
    assert "00002.tar is cut at byte 3000" in caplog.text
    with pytest.raises(ValueError, match=r"00002.tar is cut at byte 3000"):
        list(islice(open_stream(tolerant.model_copy(update={"shards": str(folder), "on_error": "raise"})), 9))


def test_too_many_bad_samples_stop_the_run_with_a_summary(tolerant: DataConfig) -> None:
    few = tolerant.model_copy(update={"max_bad_samples": 0.03})
    with pytest.raises(
        ValueError, match=r"4 of 100 samples are bad, more than data.max_bad_samples=0.03"
    ) as caught:
        list(islice(open_stream(few), 9))
    assert "samples skipped so far, by cause: samples/" in str(caught.value)
    few = tolerant.model_copy(update={"max_bad_shards": 0.1})
    with pytest.raises(ValueError, match=r"1 of 6 shards are bad, more than data.max_bad_shards=0.1"):
        list(islice(open_stream(few), 9))


def test_a_budget_is_a_share_of_what_was_served() -> None:
    config = DataConfig(shards="x", on_error="quarantine", max_bad_samples=0.01, max_bad_shards=0.5)
    many = {"samples": 1_000_000, "skips/samples/tar": 10_000, "skips/shards/missing": 500_000}
    check_budget(config, many, {1}, samples=2_000_000, shards=2)
    check_budget(config, {"samples": 32, "skips/samples/a": 100}, set(), samples=2_000_000, shards=2)
    with pytest.raises(ValueError, match="10001 of 1000000 samples are bad"):
        check_budget(config, {**many, "skips/samples/tar": 10_001}, {1}, samples=2_000_000, shards=2)
    with pytest.raises(ValueError, match="101 of 10000 samples are bad"):
        check_budget(config, {"samples": 320, "skips/samples/a": 101}, set(), samples=2_000_000, shards=2)
    with pytest.raises(ValueError, match="2 of 2 shards are bad"):
        check_budget(config, many, {0, 1}, samples=2_000_000, shards=2)


def test_a_set_without_one_good_sample_is_an_error(
    tolerant: DataConfig, broken: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    shutil.copy(broken / "manifest.json", folder)
    nothing = tolerant.model_copy(update={"shards": str(folder), "max_bad_shards": 1.0})
    with pytest.raises(ValueError, match="every sample of the set is bad"):
        next(iter(open_stream(nothing)))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (status(500), r"tar cannot be reached: .*500"),
        (status(503), r"tar cannot be reached: .*503"),
        (status(403), r"access to .*tar is denied"),
        (slow_first_byte(20), r"tar cannot be reached: "),
        (reset_after(10), r"tar cannot be reached: "),
    ],
    ids=["500", "503", "403", "timeout", "reset"],
)
def test_a_store_out_of_reach_stops_the_run_under_either_policy(
    tolerant: DataConfig, broken: Path, fault: Fault, message: str
) -> None:
    """What cannot be had today may be there tomorrow: a resumed run would see another order."""
    with faulty_server() as server:
        for path in broken.iterdir():
            server.content[f"/set/{path.name}"] = path.read_bytes()
        remote = tolerant.model_copy(
            update={
                "shards": f"{server.url}/set",
                "store": StoreConfig(retries=1, retry_seconds=3, stall_seconds=0.4),
            }
        )
        stream = open_stream(remote)
        server.always = fault
        with pytest.raises(ValueError, match=message):
            next(iter(stream))
        assert not stream.bad_shards


def test_a_missing_shard_is_quarantined_and_counted(
    tolerant: DataConfig, broken: Path, tmp_path: Path
) -> None:
    with faulty_server() as server:
        for path in broken.iterdir():
            server.content[f"/set/{path.name}"] = path.read_bytes()
        del server.content["/set/00005.tar"]
        server.content["/set/00004.tar"] = b"<!doctype html><p>please log in</p>"
        settings = StoreConfig(cache_dir=str(tmp_path / "cache"), retries=3)
        remote = tolerant.model_copy(
            update={"shards": f"{server.url}/set", "store": settings, "max_bad_shards": 0.6}
        )
        stream = open_stream(remote)
        taken = list(islice(stream, 9))
        assert stream.bad_shards == {2, 4, 5}
        again = open_stream(remote)
        for one, other in zip(islice(again, 9), taken, strict=True):
            assert torch.equal(one.images, other.images)
    assert stream.counts["skips/shards/missing"] > 0
    assert stream.counts["skips/shards/length"] > 0
    assert stream.counts["cache/misses"] == 6
    assert again.counts["cache/hits"] == 3
    assert len(list((tmp_path / "cache" / "shards").iterdir())) == 3


@settings(deadline=None, max_examples=60)
@given(
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    lanes=st.integers(1, 5),
    block=st.integers(1, 7),
    data=st.data(),
)
def test_substitutes_reach_every_good_sample_own_block_first(
    counts: list[int], lanes: int, block: int, data: st.DataObject
) -> None:
    order = Order(counts, lanes=lanes, block=block, seed=3)
    bad = data.draw(st.sets(st.integers(0, len(counts) - 1)))
    position = data.draw(st.integers(0, 2 * order.samples - 1))
    place = order.place(position)
    found = list(substitutes(order, place, bad.__contains__))
    own = {tuple(pair) for pair in order.block_samples(place.epoch, place.lane, place.block).tolist()}
    if not {shard for shard, _ in own} <= bad:
        assert found[0] == order.sample(position)
        assert set(found[: len(own)]) == own
    assert len(found) == len(set(found))
    good = {(s, i) for s, count in enumerate(counts) if s not in bad for i in range(count)}
    assert good <= set(found)
    assert np.all([0 <= index < counts[shard] for shard, index in found])
