from __future__ import annotations

import json
from pathlib import Path

import pytest

from segclip.trainer.faults import FAULTS, FIRED, fail_at


@pytest.fixture
def fired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "fired"
    faults = [
        {"where": "here", "rank": 1, "step": 3, "what": "disk full"},
        {"where": "there", "rank": 0, "step": 3, "what": "explode"},
    ]
    monkeypatch.setenv(FAULTS, json.dumps(faults))
    monkeypatch.setenv(FIRED, str(path))
    return path


def test_a_fault_fires_once_at_its_place_rank_and_step(fired: Path) -> None:
    for where, step, rank in (("here", 3, 0), ("here", 2, 1), ("there", 3, 1)):
        fail_at(where, step, rank)
    assert not fired.exists()
    with pytest.raises(OSError, match="No space left"):
        fail_at("here", 3, rank=1)
    fail_at("here", 3, rank=1)
    with pytest.raises(ValueError, match="unknown fault 'explode'"):
        fail_at("there", 3, rank=0)
    assert [json.loads(line)["where"] for line in fired.read_text().splitlines()] == ["here", "there"]


def test_nothing_happens_outside_the_fault_suite(fired: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FAULTS)
    fail_at("here", 3, rank=1)
    assert not fired.exists()
