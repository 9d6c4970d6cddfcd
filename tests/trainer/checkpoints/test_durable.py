from __future__ import annotations

from pathlib import Path

from segclip.trainer.checkpoints.durable import flush_folder, write_flushed


def test_what_is_flushed_is_there(tmp_path: Path) -> None:
    write_flushed(tmp_path / "a", b"\x00b")
    flush_folder(tmp_path)
    assert (tmp_path / "a").read_bytes() == b"\x00b"
