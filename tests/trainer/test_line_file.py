from __future__ import annotations

import logging

import pytest

from segclip.trainer import line_file
from segclip.trainer.line_file import LineFile
from segclip.trainer.spool import Spool
from tests.small_disk import fill, small_disk


def test_lines_wait_for_room_and_come_in_order(caplog: pytest.LogCaptureFixture) -> None:
    lines = [f"{number:03d} ".encode() + b"x" * 1500 + b"\n" for number in range(8)]
    with small_disk(64) as disk, caplog.at_level(logging.WARNING):
        path = disk / "lines"
        file = LineFile(path)
        file.append(lines[0])
        ballast = fill(
            disk
        )  # a page of the file is half full: the next line fits in it, the one after it does not
        for line in lines[1:7]:
            file.append(line)
            assert path.read_bytes() in (lines[0], lines[0] + lines[1])
        assert file.held == 5
        assert caplog.text.count(f"{path} cannot be written: No space left on device") == 1
        assert "(1,505 bytes wanted, 0 are free there); the run goes on" in caplog.text
        ballast.unlink()
        file.append(lines[7])
        assert path.read_bytes() == b"".join(lines)
        assert file.held == 0
        assert "is written again, nothing is lost" in caplog.text


def test_what_is_held_is_bounded_and_the_loss_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(line_file, "MOST_HELD", 10_000)
    with small_disk(64) as disk, caplog.at_level(logging.WARNING):
        ballast = fill(disk)
        file = LineFile(disk / "lines")
        for _ in range(13):
            file.append(b"x" * 999 + b"\n")
        assert file.held == 10
        assert "further lines are lost" in caplog.text
        ballast.unlink()
        file.append(b"one more\n")
        assert len((disk / "lines").read_bytes().splitlines()) == 11
        assert "is written again, 3 lines are lost" in caplog.text


def test_records_are_sent_from_memory_and_once() -> None:
    def sent(spool: Spool, count: int) -> list[object]:
        found = []
        for _ in range(count):
            following = spool.next()
            assert following is not None
            found.append(following[0])
            spool.sent(following[1])
        return found

    with small_disk(64) as disk:
        spool = Spool(disk / "spool")
        records = [{"number": number, "text": "x" * 3000} for number in range(6)]
        spool.append(records[0])
        ballast = fill(disk)
        for record in records[1:4]:
            spool.append(record)
        assert spool.waiting() == 4
        assert sent(spool, 2) == records[:2]
        following = spool.next()  # on its way while the disk gets room
        assert following is not None
        ballast.unlink()
        spool.append(records[4])
        assert spool.held == 0
        spool.sent(following[1])
        assert [following[0], *sent(spool, 2)] == records[2:5]
        assert spool.waiting() == 0
        again = Spool(disk / "spool")
        again.append(records[5])
        assert sent(again, 1) == [records[5]]
