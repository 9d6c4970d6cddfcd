"""Folders of files that are checkpoints to whoever does not load them."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Mapping
from pathlib import Path

import yaml

from segclip.trainer.checkpoints.store import upload
from segclip.trainer.config import RunConfig
from tests.distributed.conftest import SMALL

__all__ = ["flip_bit", "run_config", "upload_with", "write_checkpoint"]


def write_checkpoint(
    run_dir: Path,
    step: int,
    *,
    seed: int = 0,
    size: int = 3000,
    best: tuple[int, float] | None = None,
    run: str = "test",
    stage: int = 1,
    **checkpoint: object,
) -> Path:
    """A published checkpoint of two ranks; its bytes depend on step and seed."""
    folder = run_dir / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    known = None if best is None else {"step": best[0], "miou": best[1]}
    state = {
        "step": step, "seed": 0, "global_batch": 16, "mlflow_run_id": None, "git_commit": None, "best": known,
    }  # fmt: skip
    (folder / "state.json").write_text(json.dumps(state))
    config = {"name": run, "zero": {"stage": stage}, "checkpoint": checkpoint}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    names = ["mp_rank_00_model_states.pt"]
    names += [f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(2)]
    for number, name in enumerate(names):
        (folder / name).write_bytes(random.Random(1000 * step + 10 * seed + number).randbytes(size))
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    (folder / "checksums.json").write_text(json.dumps(sums, indent=1, sort_keys=True))
    return folder


def flip_bit(path: Path) -> None:
    """Damage a file in its middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def run_config(run_dir: Path, store: Path | None) -> RunConfig:
    """A run whose checkpoints are uploaded to a folder, or not at all."""
    checkpoint = {"upload": None if store is None else store.as_uri()}
    data = {**SMALL["data"], "shards": "x"}
    return RunConfig.model_validate(
        {**SMALL, "run_dir": str(run_dir), "data": data, "checkpoint": checkpoint}
    )


def upload_with(environment: Mapping[str, str], folder: Path, url: str) -> None:
    """Upload in a process that has variables of its own."""
    os.environ.clear()
    os.environ.update(environment)
    upload(folder, url)
