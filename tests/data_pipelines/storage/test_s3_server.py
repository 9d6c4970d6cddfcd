from __future__ import annotations

import random
import socket
from itertools import islice
from pathlib import Path

import pytest
import torch

from segclip.data_pipelines.config import DataConfig
from segclip.data_pipelines.counters import Counters
from segclip.data_pipelines.errors import StoreError
from segclip.data_pipelines.loader import build_loader
from segclip.data_pipelines.storage.config import StoreConfig
from segclip.data_pipelines.storage.s3_server import s3_server
from segclip.data_pipelines.storage.store import open_store, upload
from segclip.data_pipelines.verify import verify_set


@pytest.mark.slow
def test_shards_are_written_verified_and_streamed_over_s3(
    tmp_path: Path, scene_set: Path, config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # where nobody listens: no proxy is asked
    with s3_server(tmp_path / "s3", bucket="bucket") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        url = f"{server.url}/some/where"
        assert upload(scene_set, url) == 7
        assert verify_set(url).samples == 100
        assert [entry.path for entry in open_store(server.url).list()][:1] == ["some/where/00000.tar"]
        sizes = {"patch_size": 4, "rank": 0, "world_size": 1, "batch_size": 12, "seed": 4}
        remote = build_loader(config.model_copy(update={"shards": url}), **sizes)
        local = build_loader(config, **sizes)
        for one, other in zip(islice(remote, 9), islice(local, 9), strict=True):
            assert torch.equal(one.images, other.images)
        _read_in_ranges(tmp_path, config.model_copy(update={"shards": url}), local.shards)
        with pytest.raises(ValueError, match=r"s3://bucket/nothing/manifest.json does not exist"):
            verify_set("s3://bucket/nothing")
        port = int(server.endpoint.rpartition(":")[2])
        in_use = f"port {port} for the S3 server is already in use"
        with pytest.raises(ValueError, match=in_use), s3_server(tmp_path / "other", port=port):
            pass
        with monkeypatch.context() as wrong:
            wrong.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
            with pytest.raises(ValueError, match=r"access to s3://bucket/.* is denied|cannot be reached"):
                verify_set(url)
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
        pass  # it has stopped
    with s3_server(tmp_path / "s3", bucket="bucket", port=port):  # what was stored is still there
        assert verify_set(url).samples == 100


def _read_in_ranges(tmp_path: Path, config: DataConfig, shards: int) -> None:
    """A large object in parallel ranges, and a set through a cache that holds some of its shards."""
    body = random.Random(3).randbytes(21 * 2**20 + 12345)
    store = open_store("s3://bucket", settings=StoreConfig(range_mib=2), counters=Counters())
    store.put("large.tar", body)
    assert store.get("large.tar", len(body)) == body
    assert store.get("large.tar") == body
    assert store.counters.take() == {"store/bytes": 2 * len(body)}
    with pytest.raises(StoreError, match=r"has 22032441 bytes where 22032440 are expected"):
        store.get("large.tar", len(body) - 1)
    folder = tmp_path / "cache"
    kept = StoreConfig(cache_dir=str(folder), cache_gib=200_000 / 2**30)
    stream = build_loader(
        config.model_copy(update={"store": kept}),
        patch_size=4,
        rank=0,
        world_size=1,
        batch_size=12,
        seed=4,
    )
    for _ in islice(stream, 26):  # three epochs
        assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 200_000
    assert stream.counts["cache/misses"] >= shards
    assert stream.counts["cache/misses"] + stream.counts["cache/hits"] >= shards


def test_a_port_out_of_range_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="port 70000"), s3_server(tmp_path, port=70000):
        pass
