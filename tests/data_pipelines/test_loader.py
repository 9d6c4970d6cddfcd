from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from segclip.data_pipelines.config import CaptionParts, DataConfig
from segclip.data_pipelines.lanes import Split, read_parts
from segclip.data_pipelines.loader import BatchStream, build_loader
from segclip.data_pipelines.manifest import Manifest, describe
from segclip.data_pipelines.samples import Batch, join_batches
from segclip.data_pipelines.shard_sets import read_sets
from segclip.data_pipelines.shard_writer import pack

FIELDS = ("images", "tokens", "caption_tokens", "superpixels", "positions")


def batches(
    config: DataConfig,
    steps: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    batch_size: int = 12,
    start_step: int = 0,
) -> list[Batch]:
    stream = build_loader(
        config,
        patch_size=4,
        rank=rank,
        world_size=world_size,
        batch_size=batch_size,
        seed=4,
        start_step=start_step,
    )
    taken = list(islice(stream, steps))
    stream.close()
    return taken


def global_batches(config: DataConfig, steps: int, world_size: int, start_step: int = 0) -> list[Batch]:
    """The batches of 12 samples that ranks give together."""
    ranks = [
        batches(
            config, steps, rank=r, world_size=world_size, batch_size=12 // world_size, start_step=start_step
        )
        for r in range(world_size)
    ]
    return [join_batches(parts) for parts in zip(*ranks, strict=True)]


def assert_same(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        for name in FIELDS:
            assert torch.equal(getattr(one, name), getattr(other, name)), name
        assert one.captions == other.captions


def test_an_epoch_holds_each_sample_once_and_the_stream_goes_on(config: DataConfig) -> None:
    """Crops take the whole picture here, so equal pictures are equal samples."""
    config = config.model_copy(update={"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0)})
    stream = batches(config, 25)  # 300 positions: three epochs
    images = torch.cat([batch.images for batch in stream])
    assert torch.cat([batch.positions for batch in stream]).tolist() == list(range(300))
    epochs = [sorted(image.numpy().tobytes() for image in images[e * 100 : e * 100 + 100]) for e in range(3)]
    assert len(set(epochs[0])) == 100
    assert epochs[0] == epochs[1] == epochs[2]
    assert not torch.equal(images[:100], images[100:200])


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_global_batches_do_not_depend_on_the_number_of_ranks(config: DataConfig, world_size: int) -> None:
    assert_same(global_batches(config, 10, world_size), batches(config, 10))


@pytest.mark.parametrize("start", [1, 8, 20])
def test_resuming_is_going_on(config: DataConfig, start: int) -> None:
    """Steps 8 and 20 are in the middle of the first epoch and in the third."""
    whole = batches(config, start + 4)
    assert_same(batches(config, 4, start_step=start), whole[start:])
    assert_same(global_batches(config, 4, 2, start_step=start), whole[start:])


SPLITS = [
    (world, workers) for world in (1, 2, 3, 6) for workers in (1, 2, 3, 6) if 6 % (world * workers) == 0
]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_way_to_run_sees_the_same_samples(config: DataConfig, data: st.DataObject) -> None:
    """Any ranks and workers up to some step, then any others: the batches of one process that never stopped.

    Workers are walked through in this process: what each does is the same function as in a process of its own.
    """
    several = data.draw(st.sampled_from(["one", "joined", "mixed"]))
    end = data.draw(st.sampled_from(["join", "drop", "pad"])) if several != "mixed" else "join"
    config = in_parts(config, several).model_copy(update={"epoch_end": end})
    total = data.draw(st.sampled_from([6, 12, 18]))
    stop = data.draw(st.integers(1, 12))
    wanted = parts_of(config, total, 1, 1, range(stop + 3))
    for first, last in ((0, stop), (stop, stop + 3)):
        world, workers = data.draw(st.sampled_from(SPLITS))
        assert_same(parts_of(config, total, world, workers, range(first, last)), wanted[first:last])


def in_parts(config: DataConfig, several: str) -> DataConfig:
    """The same set alone, or twice, joined or mixed."""
    if several == "one":
        return config
    weights = (None, None) if several == "joined" else (3.0, 0.5)
    return DataConfig.model_validate(
        {
            **config.model_dump(),
            "shards": None,
            "sources": [
                {"name": name, "shards": config.shards, "weight": weight}
                for name, weight in zip(("left", "right"), weights, strict=True)
            ],
        }
    )


def parts_of(config: DataConfig, total: int, world: int, workers: int, steps: range) -> list[Batch]:
    """Batches of all ranks and workers, joined, each of which begins at the first step."""
    config = config.model_copy(update={"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0)})
    parts = []
    for rank in range(world):
        split = Split(config, read_sets(config), 4, rank, world, total // world, 4, steps.start)
        for worker in range(workers):
            stream = read_parts(split, worker, workers)
            parts.append([part.batch for part in islice(stream, len(steps))])
            stream.close()
    return [join_batches(each) for each in zip(*parts, strict=True)]


def test_joined_sets_are_one_and_mixed_ones_keep_their_weights(config: DataConfig) -> None:
    joined = open_stream(in_parts(config, "joined"))
    assert (joined.samples, joined.shards) == (200, 12)
    list(islice(joined, 25))
    assert joined.counts["sources/left/samples"] + joined.counts["sources/right/samples"] == 300
    list(islice(open_stream(in_parts(config, "joined")), 1))
    mixed = open_stream(in_parts(config, "mixed"))
    list(islice(mixed, 7))  # 84 positions: twice the pattern of 7 turns in each of 6 lanes
    assert mixed.counts["sources/left/samples"] == 72
    assert mixed.counts["sources/right/samples"] == 12


def test_queues_are_seen_to_fill(config: DataConfig) -> None:
    """DataLoader's own queue is looked into: this fails where another torch keeps it elsewhere."""
    stream = open_stream(config.model_copy(update={"workers": 2, "prefetch": 3}))
    batches_of = iter(stream)
    next(batches_of)
    deadline = time.monotonic() + 60
    while stream.batches_ready < 2.5 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert 2.5 <= stream.batches_ready <= 3.0
    assert stream.shards_ready > 0
    stream.close()
    assert stream.batches_ready == 0


def open_stream(config: DataConfig) -> BatchStream:
    return build_loader(config, patch_size=4, rank=0, world_size=1, batch_size=12, seed=4)


def test_seeds_and_epochs_crop_differently(config: DataConfig) -> None:
    other = build_loader(config, patch_size=4, rank=0, world_size=1, batch_size=12, seed=5)
    assert not torch.equal(next(iter(other)).images, batches(config, 1)[0].images)


WORKERS = """
import sys, json, torch
from itertools import islice
from segclip.data_pipelines.config import DataConfig
from segclip.data_pipelines.loader import build_loader
from segclip.data_pipelines.storage.store import client_started

def take(config, steps, **more):
    stream = build_loader(config, patch_size=4, rank=0, world_size=1, batch_size=12, seed=4, **more)
    taken = list(islice(stream, steps))
    stream.close()
    return taken

config = DataConfig.model_validate_json(sys.argv[1])
several = {}
for w, s in ((1, 0), (2, 7), (3, 3)):
    several[w, s] = take(config.model_copy(update={"workers": w}), 4, start_step=s)
bad = config.model_copy(update={"workers": 2, "shards": sys.argv[2]})
messages = []
try:
    take(bad, 30)
except ValueError as error:
    messages.append(str(error))
tolerant = bad.model_copy(update={"on_error": "quarantine", "max_bad_samples": 1.0, "workers": 3})
spared = take(tolerant, 10)
assert not client_started()
alone = take(config, 11)
for (w, s), taken in several.items():
    for one, other in zip(taken, alone[s : s + 4], strict=True):
        for name in ("images", "tokens", "caption_tokens", "superpixels", "positions"):
            assert torch.equal(getattr(one, name), getattr(other, name)), (w, s, name)
        assert one.captions == other.captions
for one, other in zip(spared, take(tolerant.model_copy(update={"workers": 0}), 10), strict=True):
    assert torch.equal(one.images, other.images)
    assert one.captions == other.captions
print(json.dumps(messages))
"""


def _spoil(source: Path, target: Path, members: dict[str, bytes]) -> Path:
    """A copy of a set whose fourth shard holds one more, bad sample."""
    shutil.copytree(source, target)
    document = Manifest.model_validate_json((target / "manifest.json").read_bytes())
    content, count = pack([("worse", members)])
    (target / "00003.tar").write_bytes(content)
    shards = list(document.shards)
    shards[3] = describe("00003.tar", content, count)
    (target / "manifest.json").write_bytes(document.model_copy(update={"shards": tuple(shards)}).to_json())
    return target


def test_workers_change_nothing_and_their_errors_arrive_in_one_line(
    config: DataConfig, scene_set: Path, tmp_path: Path
) -> None:
    """Forked workers, in a process that has not used the store's client; checked against none."""
    bad = _spoil(scene_set, tmp_path / "bad", {"jpg": b"<html>", "txt": b"t"})
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WORKERS, config.model_dump_json(), str(bad)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (message,) = json.loads(done.stdout)
    assert "sample 'worse' of shard file://" in message
    assert (
        "00003.tar: the picture .jpg is bad: it is no JPEG, PNG or WebP: it looks like a web page" in message
    )
    assert "\n" not in message


@pytest.mark.slow
def test_workers_start_cleanly_where_the_client_was_used(config: DataConfig) -> None:
    alone = batches(config, 3)  # uses the client in this process
    assert_same(batches(config.model_copy(update={"workers": 2}), 3), alone)


def _jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"jpg": _jpeg()[:300], "txt": b"t"}, "the picture .jpg is bad"),
        ({"jpg": _jpeg(), "txt": b"  "}, "its caption is empty"),
    ],
)
def test_bad_samples_stop_the_stream(
    config: DataConfig, scene_set: Path, tmp_path: Path, members: dict[str, bytes], message: str
) -> None:
    bad = config.model_copy(update={"shards": str(_spoil(scene_set, tmp_path / "bad", members))})
    with pytest.raises(ValueError, match=f"sample 'worse' of shard .*00003.tar: {message}"):
        batches(bad, 30)


def test_a_shard_that_is_not_the_manifests_stops_the_stream(
    config: DataConfig, scene_set: Path, tmp_path: Path
) -> None:
    shutil.copytree(scene_set, tmp_path / "copy")
    shard = tmp_path / "copy" / "00001.tar"
    content = bytearray(shard.read_bytes())
    content[600] ^= 1
    shard.write_bytes(content)
    bad = config.model_copy(update={"shards": str(tmp_path / "copy")})
    with pytest.raises(ValueError, match=r"00001.tar does not match the manifest"):
        batches(bad, 30)
    assert len(batches(bad.model_copy(update={"checksum": False}), 9)) == 9
    shard.unlink()
    with pytest.raises(ValueError, match=r"00001.tar does not exist"):
        batches(bad, 30)
    manifest = Manifest.model_validate_json((tmp_path / "copy" / "manifest.json").read_bytes())
    fewer, _ = pack([("alone", {"jpg": _jpeg(), "txt": b"t"})])
    shard.write_bytes(fewer)
    shards = list(manifest.shards)
    shards[1] = describe("00001.tar", fewer, 17)
    changed = manifest.model_copy(update={"shards": tuple(shards)})
    (tmp_path / "copy" / "manifest.json").write_bytes(changed.to_json())
    with pytest.raises(ValueError, match=r"00001.tar holds 1 samples, the manifest states 17"):
        batches(bad, 30)


def test_what_cannot_work_is_refused_at_once(config: DataConfig, tmp_path: Path) -> None:
    def build(**changes: object) -> None:
        sizes = {"rank": 0, "world_size": 1, "batch_size": 4, "patch_size": 4}
        sizes.update({name: changes.pop(name) for name in list(changes) if name in sizes})  # type: ignore[misc]
        build_loader(config.model_copy(update=changes), seed=0, **sizes)

    with pytest.raises(ValueError, match=r"manifest.json does not exist: check the data path"):
        build(shards=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"6 shards are fewer than 12 readers \(3 ranks x 4 workers\)"):
        build(world_size=3, workers=4)
    with pytest.raises(ValueError, match=r"data.lanes=6 is not divisible by 4 readers"):
        build(workers=4)
    with pytest.raises(ValueError, match="not a multiple of the patch size 5"):
        build(patch_size=5)
    with pytest.raises(ValueError, match="batch_size=0"):
        build(batch_size=0)
    with pytest.raises(ValueError, match="rank=2 below world_size=2"):
        build(rank=2, world_size=2)
    (tmp_path / "manifest.json").write_bytes(Manifest(shards=()).to_json())
    with pytest.raises(ValueError, match="names zero shards"):
        build(shards=str(tmp_path))


def test_small_batches_leave_some_workers_idle_for_a_step(config: DataConfig) -> None:
    """One sample a step: captions of whole and part are drawn, and nothing is lost."""
    config = config.model_copy(update={"caption_parts": CaptionParts(full=0.5, object=0.5)})
    single = batches(config, 24, batch_size=1)
    assert_same([join_batches(single)], batches(config, 1, batch_size=24))
