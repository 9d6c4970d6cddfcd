"""Shards that are bad, uneven or few, and workers that are killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from segclip.data_pipelines.manifest import Manifest, describe
from segclip.data_pipelines.shard_writer import pack
from segclip.data_pipelines.tar import group_samples
from tests.faults.conftest import Fault, Run
from tests.faults.data_runs import (
    STEPS,
    WHOLE,
    complete,
    new_run,
    samples,
    scenes,  # noqa: F401
    stops,
    the_error,
    until,
    untouched,  # noqa: F401
)
from tests.run_files import metrics

pytestmark = pytest.mark.slow
POSITIONS = STEPS * 16


def truncated(content: bytes) -> bytes:
    return content[:5000]


def corrupt(content: bytes) -> bytes:
    """The checksum of the first header changed, at byte 148."""
    return content[:148] + b"999999" + content[154:]


def empty(content: bytes) -> bytes:
    return b""


def page(content: bytes) -> bytes:
    return b"<!doctype html><title>Log in</title>"


FAULTS: dict[str, tuple[Callable[[bytes], bytes], tuple[str, ...], str]] = {
    # what is done, what the message says, the cause that is counted
    "truncated": (truncated, ("has 5000 bytes, the manifest states",), "length"),
    "corrupt": (
        corrupt,
        ("does not match the manifest (SHA-256; its first fault is at byte 0)",),
        "checksum",
    ),
    "empty": (empty, ("is empty: upload it again",), "empty"),
    "page": (page, ("is a web page and no data",), "web_page"),
}


# Number of the shard of each. What comes late in the order is late to be found.
ALL = dict(zip((4, 5, 6, 7), FAULTS, strict=True))
LATE = 6


def spoil(source: Path, target: Path, names: dict[int, str]) -> Path:
    """A copy of a set with faults in some of its shards, given by their numbers."""
    shutil.copytree(source, target)
    for number, name in names.items():
        path = target / f"{number:05d}.tar"
        path.write_bytes(FAULTS[name][0](path.read_bytes()))
    return target


@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_shard_stops_all_ranks_with_a_checkpoint(
    name: str,
    scenes: Path,
    untouched: Run,
    tmp_path: Path,
) -> None:
    """Named with the byte where that can be told; when it is mended, the same command goes on to the same model."""
    data = spoil(scenes, tmp_path / "scenes", {LATE: name})
    run = new_run(tmp_path, str(data))
    error = stops(run)
    for word in (f"{data}/{LATE:05d}.tar", *FAULTS[name][1]):
        assert word in error
    reached = len(metrics(run.folder))
    assert 0 < reached < STEPS
    assert run.checkpoints() == [f"step-{reached:08d}"]
    shutil.copy(scenes / f"{LATE:05d}.tar", data)
    complete(run)
    assert metrics(run.folder)[-1]["data/samples"] == POSITIONS
    run.must_equal(untouched)


def test_bad_shards_are_passed_over_within_the_budget(
    scenes: Path,
    untouched: Run,
    tmp_path: Path,
) -> None:
    """Four of eight: every good sample is at its own place, and those places that bad ones leave hold good ones."""
    data = spoil(scenes, tmp_path / "scenes", ALL)
    run = new_run(tmp_path, str(data), on_error="quarantine", max_bad_shards=0.5)
    text = complete(run)
    # Crops depend on the place, so a sample is known by its place alone: those that differ are those of the bad shards.
    found, expected = samples(run), samples(untouched)
    assert found.keys() == expected.keys() == set(range(POSITIONS))
    replaced = sum(found[position] != expected[position] for position in found)
    last = metrics(run.folder)[-1]
    skips = {key: value for key, value in last.items() if key.startswith("data/skips/")}
    assert skips.keys() == {f"data/skips/shards/{cause}" for _, _, cause in FAULTS.values()}
    # The two whole epochs skip ten samples of each, the half epoch some.
    assert all(20 <= skipped <= 30 for skipped in skips.values())
    assert replaced == sum(skips.values())
    assert last["data/bad_shards"] == 4
    for number in ALL:
        assert f"{data}/{number:05d}.tar" in text


def test_more_bad_shards_than_allowed_stop_all_ranks(scenes: Path, tmp_path: Path) -> None:
    data = spoil(scenes, tmp_path / "scenes", ALL)
    run = new_run(tmp_path, str(data), on_error="quarantine", max_bad_shards=0.3)
    error = stops(run)
    assert "of 8 shards are bad, more than data.max_bad_shards=0.3" in error


@pytest.mark.parametrize("end", ["join", "drop", "pad"])
def test_uneven_shards_leave_no_rank_without_data(end: str, scenes: Path, tmp_path: Path) -> None:
    """Shards of 1 to 57 samples, 75 in all: no multiple of the batch. Every rank makes every step, and an epoch ends as
    docs/data.md says."""
    counts = [1, 2, 57, 1, 3, 5, 4, 2]
    run = new_run(tmp_path, str(uneven(scenes, tmp_path / "uneven", counts)), epoch_end=end, **PLAIN)
    complete(run)
    shown = samples(run)
    assert shown.keys() == set(range(POSITIONS))
    for rank in (0, 1):
        lines = (run.folder / f"samples-{rank}.jsonl").read_text().splitlines()
        assert [len(json.loads(line)["positions"]) for line in lines] == [8] * STEPS
    length = {"join": 75, "drop": 64, "pad": 80}[end]
    for epoch in range(POSITIONS // length):
        times = Counter(Counter(shown[epoch * length + place] for place in range(length)).values())
        # How many samples came once, and how many twice.
        assert times == {"join": {1: 75}, "drop": {1: 64}, "pad": {1: 70, 2: 5}}[end]


def test_a_set_smaller_than_a_batch_is_no_hang(scenes: Path, tmp_path: Path) -> None:
    run = new_run(tmp_path, str(uneven(scenes, tmp_path / "uneven", [1, 1, 2, 1])), **PLAIN)
    complete(run)
    shown = samples(run)
    assert set(Counter(shown[place] for place in range(POSITIONS - POSITIONS % 5)).values()) == {
        POSITIONS // 5
    }


# Whole pictures and captions, so that a sample looks the same wherever it comes.
PLAIN = {
    "crop_scale": [1.0, 1.0],
    "crop_ratio": [1.0, 1.0],
    "caption_parts": {"full": 1.0, "object": 0.0, "ground": 0.0},
}


def uneven(source: Path, target: Path, counts: list[int]) -> Path:
    """A set of some samples of another in shards of such sizes."""
    every = []
    for path in sorted(source.glob("*.tar")):
        content = path.read_bytes()
        for each in group_samples(content, path.name):
            every.append((each.key, {name: content[a:b] for name, (a, b) in each.members.items()}))
    target.mkdir()
    entries = []
    for number, count in enumerate(counts):
        content, _ = pack(every[:count])
        del every[:count]
        (target / f"{number:05d}.tar").write_bytes(content)
        entries.append(describe(f"{number:05d}.tar", content, count))
    manifest = Manifest.model_validate_json((source / "manifest.json").read_bytes())
    (target / "manifest.json").write_bytes(manifest.model_copy(update={"shards": tuple(entries)}).to_json())
    return target


def test_a_killed_worker_is_named_and_all_ranks_stop_with_a_checkpoint(
    scenes: Path,
    untouched: Run,
    tmp_path: Path,
) -> None:
    """As the kernel does it when memory is out."""
    run = new_run(tmp_path, str(scenes), workers=2, prefetch=1)
    # Time to kill one.
    group = run.begin(*WHOLE, faults=[Fault("before step", 4, "sleep 3", rank=1)])
    try:
        until(lambda: bool(run.fired()))
        rank = group.ranks[1].pid
        assert rank is not None
        victim = workers(rank)[1]
        os.kill(victim, signal.SIGKILL)
        assert group.wait(60), group.text()
        error = the_error(group.codes(), group.text())
    finally:
        group.kill()
    assert f"rank 1: data worker 1 of 2 (process {victim}) was killed by SIGKILL" in error
    for word in (
        "memory ran out",
        "data.store.prefetch_mib=1024 MiB",
        "data.prefetch=1",
        "goes on at the next sample",
    ):
        assert word in error
    assert run.fired() == ["before step"]
    assert run.checkpoints() == ["step-00000003"]
    complete(run)
    assert metrics(run.folder)[-1]["data/samples"] == POSITIONS
    run.must_equal(untouched)


def workers(rank: int) -> list[int]:
    """Processes of the data workers of a rank, in their order."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == rank and (folder / "comm").read_text().startswith("pt_data"):
                found.append(int(folder.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return sorted(found)
