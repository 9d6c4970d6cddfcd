"""``trainer/run.py`` that notes what each rank trains on: a line a step in ``samples-RANK.jsonl`` of the run folder.

In ``tracker.jsonl`` it notes how many seconds the loop spends in each call of the tracker.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from segclip.trainer import loop
from segclip.trainer.run import main
from segclip.trainer.tracking import Tracker


def append(name: str, row: object) -> None:
    with open(Path(os.environ["SEGCLIP_TEST_NOTES"], name), "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """The same call, which notes its seconds."""

    def measured(*arguments: Any, **named: Any) -> Any:
        begin = time.perf_counter()
        try:
            return call(*arguments, **named)
        finally:
            append("tracker.jsonl", [name, time.perf_counter() - begin])

    return measured


if __name__ == "__main__":
    train_step = loop.train_step

    def noted(engine: Any, batch: Any, *arguments: Any) -> Any:
        content = [
            hashlib.sha256(image.numpy().tobytes() + tokens.numpy().tobytes()).hexdigest()
            for image, tokens in zip(batch.images, batch.tokens, strict=True)
        ]
        row = {"step": engine.global_steps + 1, "positions": batch.positions.tolist(), "content": content}
        append(f"samples-{os.environ['RANK']}.jsonl", row)
        return train_step(engine, batch, *arguments)

    loop.train_step = noted  # type: ignore[attr-defined]
    for each in ("__init__", "parameters", "metrics", "artifact", "evaluation"):
        setattr(Tracker, each, timed(each, getattr(Tracker, each)))
    main()
