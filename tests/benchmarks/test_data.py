"""What is measured beside each other does the same work, and the figures say what was measured. No timings."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.data import (
    PARTS,
    end_to_end_figures,
    memory_figures,
    raw_figures,
    shaped_figures,
    superpixel_figures,
)
from benchmarks.data_cases import check_seen, run_case
from benchmarks.photo_sets import captions, photos, write_photo_set
from benchmarks.plain_stack import plain_stream
from benchmarks.shaping_proxy import shaping_proxy
from segclip.data_pipelines.captions import tokenizer
from segclip.data_pipelines.manifest import read_manifest
from segclip.data_pipelines.tar import group_samples

ROOT = Path(__file__).parents[2]
SHARDS, PER_SHARD = 2, 16


@pytest.fixture(scope="module")
def photo_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos") / "set"
    write_photo_set(folder, SHARDS, PER_SHARD, distinct=7)
    return folder


def test_photos_are_not_alike_but_always_the_same() -> None:
    made = list(photos(13))
    assert {picture.shape for picture in made} == {(256, 341, 3)}
    assert all(np.array_equal(a, b) for a, b in zip(made, photos(13), strict=True))
    assert len({picture.tobytes() for picture in made}) == 13
    assert len(set(captions(500))) == 500


def test_a_set_repeats_pictures_and_never_captions(photo_set: Path) -> None:
    manifest = read_manifest(str(photo_set))
    assert [shard.count for shard in manifest.shards] == [PER_SHARD] * SHARDS
    assert manifest.superpixels is not None
    data = (photo_set / "00001.tar").read_bytes()
    samples = group_samples(data, "00001.tar")
    assert {tuple(sample.members) for sample in samples} == {("jpg", "superpixels.png", "txt")}
    content = {name: {data[slice(*sample.members[name])] for sample in samples} for name in ("jpg", "txt")}
    assert (len(content["jpg"]), len(content["txt"])) == (7, PER_SHARD)


@pytest.mark.parametrize("superpixels", ["none", "stored", "felzenszwalb"])
def test_the_plain_stack_gives_all_samples_with_the_same_tokens(photo_set: Path, superpixels: str) -> None:
    urls = [f"pipe:cat {shlex.quote(str(photo_set / f'{number:05d}.tar'))}" for number in range(SHARDS)]
    if superpixels == "felzenszwalb":
        urls = urls[:1]
    batches = list(plain_stream(urls, batch_size=12, superpixels=superpixels, words=9))  # type: ignore[arg-type]
    texts = [text for batch in batches for text in batch[2]]
    assert sorted(texts) == sorted(captions(SHARDS * PER_SHARD)[: PER_SHARD * len(urls)])
    pictures_BCHW, tokens_BT, in_batch, *labels = batches[0]
    assert (pictures_BCHW.shape, pictures_BCHW.dtype) == ((12, 3, 224, 224), torch.float32)
    assert float(pictures_BCHW.min()) < 0
    assert tokens_BT.tolist() == [tokenizer(9)(text).tolist() for text in in_batch]
    assert [each.shape for each in labels] == ([] if superpixels == "none" else [(12, 196)])
    # Whole ids, several in a picture: no interpolation between them.
    assert all(len(row.unique()) > 2 and row.dtype == torch.int64 for each in labels for row in each)


def test_a_stack_that_loses_or_doubles_samples_is_found_out() -> None:
    check_seen("x", ["b", "a"], ["a", "b"])
    for seen in (["a"], ["a", "b", "b"], ["a", "c"]):
        with pytest.raises(RuntimeError, match=r"x gave \d samples, \d of the set's 2"):
            check_seen("x", seen, ["a", "b"])


@pytest.mark.slow
def test_all_stacks_pass_over_the_same_set(photo_set: Path) -> None:
    stacks = ["ours", "plain", "plain with maps"]
    found = run_case("end_to_end", url=str(photo_set), superpixels="stored", stacks=stacks, rounds=2)
    assert found["samples"] == SHARDS * PER_SHARD
    for kind in ("seconds", "cpu_seconds"):
        assert list(found[kind]) == stacks
        assert all(len(each) == 2 and min(each) > 0 for each in found[kind].values())


BODY = np.random.default_rng(0).bytes(3 << 20)


@pytest.fixture
def server_port() -> Iterator[int]:
    """A server that answers every byte it gets with all of ``BODY``."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for _ in range(2):
                connection, _ = listener.accept()
                with connection:
                    while connection.recv(1):
                        connection.sendall(BODY)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]


@pytest.mark.slow
def test_the_proxy_passes_everything_on_at_its_own_rate(server_port: int) -> None:
    for rate, least in ((None, 0.0), (10e6, 2 * 0.1 + 2 * len(BODY) / 10e6 - 0.1)):
        with (
            shaping_proxy(server_port, rate=rate, first_byte=0.1 if rate else 0) as url,
            socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as client,
        ):
            begin = time.monotonic()
            for _ in range(2):
                client.sendall(b"?")
                found = bytearray()
                while len(found) < len(BODY):
                    found += client.recv(1 << 16)
                assert found == BODY
            assert time.monotonic() - begin >= least


def test_targets_and_what_stands_beside_them() -> None:
    seconds = {"ours": [1.0, 2.0, 1.0], "plain": [3.0, 4.4, 2.1], "plain with maps": [4.0, 4.0, 4.0]}
    figures = end_to_end_figures("s3", {"samples": 100, "seconds": seconds, "cpu_seconds": seconds})
    ratio = figures["end to end, s3: ratio"]
    assert (ratio.value, ratio.target, ratio.holds) == (2.2, 2.0, True)
    assert figures["end to end, s3: ours"].value == 100
    assert figures["end to end, s3: ratio, maps by both"].holds is None

    step = {"slic": [0.002], "felzenszwalb": [0.02]}
    found = superpixel_figures(
        {"fast_slic": False, "341x256": step, "224x224": step}, {"samples": 9, "seconds": seconds}
    )
    online = found["superpixels, 341x256: SLIC / Felzenszwalb"]
    assert (round(online.value), online.holds) == (10, False)
    assert "fast-slic is not installed" in online.beside

    rates = {"ours": [4e8], "stream": [8e7], "unshaped": [9e8]}
    shaped = shaped_figures({"bytes_per_second": rates})["shaped to 90 MB/s, 30 ms: ratio"]
    assert (shaped.value, shaped.holds) == (5.0, True)
    assert "900 MB/s" in shaped.beside

    grown = {"mib": [100.0, 110.0], "main_mib": [50.0, 55.0], "worker_mib": [25.0, 28.0], "store_mib": 7.0}
    last = memory_figures(grown)["memory, epoch 50 / epoch 5"]
    assert (last.value, last.holds) == (1.1, False)


@pytest.mark.parametrize("missing", [[], ["boto3: not installed (pip install boto3)"]])
def test_reading_is_compared_with_the_fastest_and_only_with_all(missing: list[str]) -> None:
    seconds = {"ours": [1.0, 1.0], "a": [3.0, 3.0], "b": [0.95, 0.95]}
    figures = raw_figures({"bytes": 10**8, "seconds": seconds, "missing": missing})
    ratio = figures["raw reading: ours / fastest other"]
    assert ratio.value == pytest.approx(0.95)
    assert ratio.holds is (None if missing else True)
    assert ratio.beside.startswith("b, 2 rounds of 100 MB")
    assert all(each in ratio.beside for each in missing)


FIGURES = {
    "files": ("end to end, files: ratio",),
    "s3": ("end to end, s3: ratio", "end to end, s3: ratio, maps by both"),
    "superpixels": ("superpixels, 341x256: SLIC / Felzenszwalb", "superpixels online, end to end: ratio"),
    "raw": ("raw reading: ours / fastest other",),
    "shaped": ("shaped to 90 MB/s, 30 ms: ratio",),
    "memory": ("memory, epoch 50 / epoch 5",),
}


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("parts", [("s3", "raw"), PARTS])
def test_it_runs_whole(tmp_path: Path, parts: tuple[str, ...]) -> None:
    path = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.data", "--quick", "--only", *parts, "--json", path],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},  # a narrow table breaks its lines
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(path.read_text())["figures"]
    for name in (name for part in parts for name in FIGURES[part]):
        assert figures[name]["value"] > 0
        assert name.partition(":")[0].split(",")[0] in done.stdout
    # Quick figures are no verdict.
    assert {figure["holds"] for figure in figures.values()} == {None}
