"""Trains the small network several times in one group of processes, each argument ``folder::override::override``, and
writes down what the optimiser holds before and after the last step.

Each rank leaves ``optimizer-RANK.json`` in the folder: settings of each group, counts of steps, and the norm that
gradients are clipped at.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from segclip.trainer import loop
from segclip.trainer.config import load_run_config
from segclip.trainer.distributed import start
from segclip.trainer.step import train_step

KEYS = ("name", "lr", "base_lr", "betas", "eps", "weight_decay")


def look(engine: Any) -> dict[str, Any]:
    optimizer = engine.optimizer
    inner = getattr(optimizer, "optimizer", optimizer)
    return {
        "groups": [{key: group[key] for key in KEYS} for group in optimizer.param_groups],
        "steps": sorted({float(state["step"]) for state in inner.state.values() if "step" in state}),
        "clip": getattr(optimizer, "clip_grad", engine.gradient_clipping()),
    }


if __name__ == "__main__":
    ranks = start()
    looks: list[dict[str, Any]] = []

    def watched(engine: Any, *arguments: Any) -> Any:
        before = look(engine)
        result = train_step(engine, *arguments)
        looks[:] = [before, look(engine)]
        return result

    loop.train_step = watched  # type: ignore[attr-defined]
    for variant in sys.argv[2:]:
        folder, *overrides = variant.split("::")
        loop.train(load_run_config(sys.argv[1], [f"run_dir={folder}", *overrides]), ranks)
        Path(folder, f"optimizer-{ranks.rank}.json").write_text(json.dumps(looks), encoding="utf-8")
