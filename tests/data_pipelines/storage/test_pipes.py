from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch

from segclip.data_pipelines.config import DataConfig
from segclip.data_pipelines.errors import StoreError
from segclip.data_pipelines.loader import build_loader
from segclip.data_pipelines.storage.store import open_store, read_before_fork

SIZES = {"patch_size": 4, "rank": 0, "world_size": 1, "batch_size": 12, "seed": 4}


def test_a_pipe_is_refused_unless_it_is_allowed(config: DataConfig, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    url = f"pipe:touch {marker}; cat {config.shards}/{{}}"
    with pytest.raises(ValueError, match=r"run shell commands and are refused: .*data.allow_pipe=true"):
        build_loader(config.model_copy(update={"shards": url}), **SIZES)
    for refuse in (open_store, lambda name: read_before_fork(name, "manifest.json")):
        with pytest.raises(ValueError, match="refused"):
            refuse(url)
    assert not marker.exists()
    piped = build_loader(config.model_copy(update={"shards": url, "allow_pipe": True}), **SIZES)
    for one, other in zip(islice(piped, 3), islice(build_loader(config, **SIZES), 3), strict=True):
        assert torch.equal(one.images, other.images)
    assert marker.exists()


def test_a_path_is_no_part_of_the_command(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    store = open_store("pipe:echo {}", allow_pipe=True)
    assert store.get(f"$(touch {marker}); touch {marker}") == f"$(touch {marker}); touch {marker}\n".encode()
    assert not marker.exists()


def test_a_pipe_that_fails_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"failed with exit code 1: cat: .*nothing.tar"):
        open_store(f"pipe:cat {tmp_path}/{{}}", allow_pipe=True).get("nothing.tar")
    with pytest.raises(StoreError, match="printed 3 bytes where 4 are expected"):
        open_store("pipe:printf abc # {}", allow_pipe=True).get("x", 4)
    with pytest.raises(ValueError, match=r"has no \{\} where the path"):
        open_store("pipe:cat /data/x.tar", allow_pipe=True)
    with pytest.raises(ValueError, match="can only be read from"):
        open_store("pipe:cat {}", allow_pipe=True).put("x", b"")
