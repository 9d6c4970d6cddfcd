"""Ranks for tests are forked from a process that holds what they need."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ranks import complete


@pytest.mark.slow
def test_ranks_find_everything_loaded(tmp_path: Path) -> None:
    """multiprocessing says nothing where this import fails, and each rank would import all of it anew."""
    script = tmp_path / "rank.py"
    script.write_text('import sys\nprint("loaded" if "tests.preloaded" in sys.modules else "bare")\n')
    assert complete(script).split() == ["loaded", "loaded"]
