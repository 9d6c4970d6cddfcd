from __future__ import annotations

import json
import tempfile
import threading
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from segclip.trainer.spool import Spool


def drain(spool: Spool) -> list[object]:
    found: list[object] = []
    while (following := spool.next()) is not None:
        found.append(following[0])
        spool.sent(following[1])
    return found


def test_records_come_in_order_and_once(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for number in range(3):
        spool.append({"number": number})
    first = spool.next()
    assert first is not None
    assert spool.next() == first, "not sent yet"
    assert spool.waiting() == 3
    spool.sent(first[1])
    spool.append({"number": 3})
    assert drain(spool) == [{"number": 1}, {"number": 2}, {"number": 3}]
    assert spool.waiting() == 0
    assert spool.next() is None


def test_what_is_not_sent_is_there_for_the_next_process(tmp_path: Path) -> None:
    first = Spool(tmp_path)
    for number in range(3):
        first.append({"number": number})
    following = first.next()
    assert following is not None
    first.sent(following[1])
    first.remember(run_id="abc")
    second = Spool(tmp_path)
    assert second.memory == {"run_id": "abc"}
    second.append({"number": 3})
    assert drain(second) == [{"number": 1}, {"number": 2}, {"number": 3}]


@settings(max_examples=50, deadline=None)
@given(cut=st.integers(1, 40))
def test_a_line_that_a_kill_has_cut_costs_itself_alone(cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        spool = Spool(folder)
        spool.append({"number": 0, "text": "first"})
        spool.append({"number": 1, "text": "\n is escaped"})
        content = spool.path.read_bytes()
        last = content.rindex(b"\n", 0, -1) + 1
        cut = min(cut, len(content) - last)
        spool.path.write_bytes(content[: last + len(content[last:]) - cut])
        after = Spool(folder)
        after.append({"number": 2})
        found = drain(after)
        assert found[0] == {"number": 0, "text": "first"}
        assert found[-1] == {"number": 2}
        # Of the second, nothing, a piece that is no record, or, cut of its end of line alone, all.
        assert found[1:-1] in ([], [None], [{"number": 1, "text": "\n is escaped"}])


def test_threads_do_not_mix_their_lines(tmp_path: Path) -> None:
    spool = Spool(tmp_path)

    def write(name: int) -> None:
        for number in range(200):
            spool.append({"thread": name, "number": number, "text": "x" * 100})

    threads = [threading.Thread(target=write, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    found = []
    while any(thread.is_alive() for thread in threads):
        found += drain(spool)
    found += drain(spool)
    assert len(found) == 800
    for name in range(4):
        assert [each["number"] for each in found if each["thread"] == name] == list(range(200))  # type: ignore[index]
    assert all(json.loads(line) for line in spool.path.read_text().splitlines())
