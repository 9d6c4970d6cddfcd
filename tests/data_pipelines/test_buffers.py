from __future__ import annotations

import os
from pathlib import Path

import pytest

from segclip.data_pipelines.buffers import buffer, fill, read_file


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
