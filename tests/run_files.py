"""What a run leaves in its folder, read for tests."""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["metrics"]


def metrics(run_dir: Path) -> list[dict[str, float]]:
    """What each step of a run reported."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
