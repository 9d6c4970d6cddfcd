"""Trains the small network several times; in some steps one parameter's gradient is NaN on the last rank alone.

Each argument is ``folder::first-last::override::override``: the steps that are spoilt, counted from 1. Each rank writes
``seen-RANK.json``: for each step, whether its weights, moments and their counts changed; and the error that ended the
run, if any.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from segclip.rank_errors import RankError
from segclip.trainer import loop
from segclip.trainer.config import load_run_config
from segclip.trainer.distributed import start

SPOILT = "vision.aggregation.centers"


def snapshot(engine: Any) -> list[Any]:
    """All numbers that a step changes, as this rank holds them."""
    held: list[Any] = [getattr(p, "ds_tensor", p).detach().clone() for p in engine.module.parameters()]
    for parameter, state in engine.basic_optimizer.state.items():
        held.append(parameter.detach().clone())
        held += [value.clone() if isinstance(value, torch.Tensor) else value for value in state.values()]
    held += [group.get("step") for group in engine.basic_optimizer.param_groups]
    return held


def equal(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))


def same(one: Any, other: Any) -> bool:
    """Whether nothing changed. The padding of ZeRO-3's shards is memory nobody wrote, which may be NaN all along."""
    if isinstance(one, torch.Tensor):
        return torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
    return bool(one == other)


if __name__ == "__main__":
    arguments = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
    # torch.empty is full of NaN from here on: no step may read what nobody wrote.
    torch.use_deterministic_algorithms(True, warn_only=True)
    ranks = start()
    honest = loop.train_step
    for variant in arguments[1:]:
        folder, spoilt, *overrides = variant.split("::")
        first, last = map(int, spoilt.split("-"))
        changed: list[bool] = []

        def spoiling(
            engine: Any, *rest: Any, first: int = first, last: int = last, seen: Any = changed
        ) -> Any:
            hook = None
            if ranks.rank == ranks.world_size - 1 and first <= len(seen) + 1 <= last:
                parameter = dict(engine.module.named_parameters())[SPOILT]
                hook = parameter.register_hook(lambda gradient: gradient * float("nan"))
            before = snapshot(engine)
            result = honest(engine, *rest)
            seen.append(not equal(before, snapshot(engine)))
            if hook is not None:
                hook.remove()
            return result

        loop.train_step = spoiling
        error = None
        try:
            loop.train(load_run_config(arguments[0], [f"run_dir={folder}", *overrides]), ranks)
        except RankError as stopped:
            error = [str(stopped), stopped.is_reporter]
        Path(folder, f"seen-{ranks.rank}.json").write_text(json.dumps({"changed": changed, "error": error}))
