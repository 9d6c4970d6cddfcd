"""Checkpoints that are whole or absent.

``<run>/checkpoints/step-00001234/`` is written by all ranks under a temporary name; every file is hashed and flushed
to disk; only then does rank 0 rename the folder, and last the file ``latest`` is replaced. DeepSpeed's own ``latest``
appears before the other ranks have finished writing, so it is neither written nor read.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.distributed as dist
from pydantic import BaseModel, ConfigDict, Field

from segclip.trainer.distributed import Ranks, agreed
from segclip.trainer.other_ranks import check_stage, load_for_other_ranks, remove_joined
from segclip.trainer.train_state import STATE, TrainState, read_state

__all__ = [
    "CheckpointConfig",
    "checkpoint_folder",
    "find_latest",
    "load_checkpoint",
    "save_checkpoint",
]

CHECKSUMS = "checksums.json"
STEP_NAME = re.compile(r"step-(\d{8})")


class CheckpointConfig(BaseModel):
    """When to save and how much to keep."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    every: int = Field(1000, gt=0, description="Steps between checkpoints; the last step is always saved.")
    keep_last: int = Field(
        2,
        ge=1,
        description="Older checkpoints than these, but the best by mean IoU, are deleted after a newer one is whole.",
    )


def checkpoint_folder(run_dir: str | Path) -> Path:
    return Path(run_dir) / "checkpoints"


def save_checkpoint(
    engine: Any, run_dir: str | Path, state: TrainState, config_yaml: str, keep_last: int, ranks: Ranks
) -> Path:
    """Write and publish ``step-XXXXXXXX``; called by every rank.

    Returns:
        The published folder.

    Raises:
        RankError: a rank could not write (disk full, no permission); nothing is published then.
    """
    root = checkpoint_folder(run_dir)
    final = root / f"step-{state.step:08d}"
    writing = root / f".writing-{final.name}"

    def prepare() -> None:
        if ranks.is_first:
            shutil.rmtree(writing, ignore_errors=True)
            writing.mkdir(parents=True)
            (writing / STATE).write_text(json.dumps(asdict(state), indent=1), encoding="utf-8")
            (writing / "config.yaml").write_text(config_yaml, encoding="utf-8")

    agreed(ranks, prepare)
    agreed(ranks, lambda: engine.save_checkpoint(str(root), tag=writing.name, save_latest=False))
    dist.barrier()
    sums = _hash_shared(writing, ranks, flush=True)

    def publish() -> None:
        if not ranks.is_first:
            return
        _write_flushed(writing / CHECKSUMS, json.dumps(sums, indent=1, sort_keys=True))
        _flush_folder(writing)
        shutil.rmtree(final, ignore_errors=True)
        os.rename(writing, final)
        _flush_folder(root)
        _write_flushed(root / "latest.new", final.name + "\n")
        os.replace(root / "latest.new", root / "latest")
        _flush_folder(root)
        best = None if state.best is None else f"step-{state.best.step:08d}"
        if best is not None:
            _write_flushed(root / "best.new", f"{best}\n")
            os.replace(root / "best.new", root / "best")
        for old in _complete(root)[:-keep_last]:
            if old.name != best:
                shutil.rmtree(old)

    agreed(ranks, publish)
    return final


def find_latest(run_dir: str | Path) -> Path | None:
    """The newest published checkpoint, or None if the run has none.

    The file ``latest`` is for people; the folders themselves decide, since a folder carries its final name only once
    it is whole.
    """
    complete = _complete(checkpoint_folder(run_dir))
    return complete[-1] if complete else None


def load_checkpoint(engine: Any, folder: Path, ranks: Ranks) -> TrainState:
    """Verify every byte of ``folder``, then load model, optimiser and state into ``engine``; called by every rank.

    Raises:
        RankError: a file is missing, altered or unreadable, or does not go with this ZeRO stage or number of
            ranks.
    """

    def expected() -> dict[str, str]:
        sums: dict[str, str] = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
        return sums

    sums = agreed(ranks, expected)

    def verify() -> None:
        found = _hash_own(folder, sorted(sums), ranks, flush=False)
        for name, digest in found.items():
            if digest != sums[name]:
                raise ValueError(
                    f"checkpoint file {folder / name} is damaged (sha256 {digest[:12]}..., expected "
                    f"{sums[name][:12]}...); delete the folder {folder} to resume from the one before"
                )

    agreed(ranks, verify)
    state = agreed(ranks, lambda: read_state(folder))
    agreed(ranks, lambda: check_stage(folder, engine.zero_optimization_stage()))
    if ranks.is_first:
        remove_joined(folder.parent)
    if engine.load_universal_checkpoint():
        load_for_other_ranks(engine, folder, ranks)
    else:
        agreed(ranks, lambda: engine.load_checkpoint(str(folder.parent), tag=folder.name))
    return state


def _complete(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(p for p in root.iterdir() if STEP_NAME.fullmatch(p.name) and (p / CHECKSUMS).is_file())


def _hash_shared(folder: Path, ranks: Ranks, flush: bool) -> dict[str, str]:
    """sha256 of every file of ``folder``; the ranks divide the files among themselves."""
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    own = agreed(ranks, lambda: _hash_own(folder, names, ranks, flush))
    parts: list[dict[str, str]] = [{} for _ in range(ranks.world_size)]
    dist.all_gather_object(parts, own)
    return {name: digest for part in parts for name, digest in part.items()}


def _hash_own(folder: Path, names: list[str], ranks: Ranks, flush: bool) -> dict[str, str]:
    digests = {}
    for name in names[ranks.rank :: ranks.world_size]:
        with open(folder / name, "rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
            if flush:
                os.fsync(file.fileno())
    return digests


def _write_flushed(path: Path, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
