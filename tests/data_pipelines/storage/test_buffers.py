from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from segclip.data_pipelines.storage import buffers
from segclip.data_pipelines.storage.buffers import KEPT, LEAST, STEP, buffer, fill, read_file


@pytest.fixture(autouse=True)
def nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "_free", [])


def address(view: memoryview) -> int:
    return int(np.frombuffer(view, dtype=np.uint8).ctypes.data)


def test_memory_is_used_again_when_its_last_view_is_gone() -> None:
    first = buffer(3 * STEP)
    place, part = address(first), first[100:200]
    del first
    second = buffer(3 * STEP)
    assert address(second) != place
    del part
    third = buffer(3 * STEP - 5)
    assert len(third) == 3 * STEP - 5
    assert address(third) == place
    third[:3] = b"abc"
    assert bytes(second[:3]) != b"abc"


def test_what_is_kept_is_bounded_and_no_waste() -> None:
    many = [buffer(2 * STEP) for _ in range(KEPT + 3)]
    assert len({address(each) for each in many}) == KEPT + 3
    del many
    assert len(buffers._free) == KEPT
    large = buffer(8 * STEP)
    del large
    assert max(each.nbytes for each in buffers._free) == 8 * STEP
    little = buffer(LEAST)  # of two steps at most: none of the free ones is that small
    assert len(buffers._free) == KEPT
    assert len(little) == LEAST


@pytest.mark.parametrize("size", [0, 1, (5 << 20) + 3])
def test_a_file_is_read_whole(tmp_path: Path, size: int) -> None:
    body = os.urandom(size)
    (tmp_path / "file").write_bytes(body)
    content = read_file(tmp_path / "file")
    assert content == body
    assert not content.readonly


def test_what_ends_early_is_told_by_its_length(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"short")
    content = buffer(9)
    with (tmp_path / "file").open("rb") as file:
        assert fill(file.fileno(), content) == 5
    assert bytes(content[:5]) == b"short"
