"""Checkpoints of a run: which there are, which is whole, and how one is loaded. ``checkpoint_writer`` writes them."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import torch.distributed as dist
from pydantic import Field, model_validator

from segclip.console import one_line
from segclip.data_pipelines.store import normalise_url
from segclip.rank_errors import RankError
from segclip.trainer.distributed import Ranks, agreed, broadcast
from segclip.trainer.other_ranks import check_stage, load_for_other_ranks, remove_joined
from segclip.trainer.retention import Retention
from segclip.trainer.train_state import STATE, TrainState, read_state

__all__ = [
    "CheckpointConfig",
    "checkpoint_folder",
    "complete",
    "damage_of",
    "find_intact",
    "find_latest",
    "load_checkpoint",
    "newest_intact",
    "none_intact",
    "remove_unfinished",
    "set_aside",
    "sha256_of",
]

CHECKSUMS = "checksums.json"
WRITING = ".writing-"
"""What the names of folders begin with that are not published yet."""
DAMAGED = ".damaged-"
"""What the names of folders begin with that were published, and are no longer as they were written."""
STEP_NAME = re.compile(r"step-(\d{8})")


class CheckpointConfig(Retention):
    """When to save, how much to keep, and where else."""

    every: int = Field(1000, gt=0, description="Steps between checkpoints; the last step is always saved.")
    upload: str | None = Field(
        None,
        description="URL in an object store that gets a copy of every checkpoint, by the same rules of what is kept, "
        "and from which the run goes on where its folder has none as new; null makes no copies.",
    )
    background: bool = Field(
        True,
        description="Copy what is to be saved into host memory (of each rank: its weights, float32 copies and moments) "
        "and write it while training goes on; false makes training wait for the disk instead.",
    )

    # Of the section, so that no message shows the value: it may hold a password by mistake.
    @model_validator(mode="after")
    def _may_be_written_to(self) -> Self:
        if self.upload is not None:
            if self.upload.startswith(("http:", "https:", "pipe:")):
                raise ValueError(
                    "checkpoint.upload must be a URL that can be written to: s3://, gs://, az:// or file://"
                )
            try:
                normalise_url(self.upload)
            except ValueError as error:
                raise ValueError(f"checkpoint.upload: {error}") from error
        return self


def checkpoint_folder(run_dir: str | Path) -> Path:
    return Path(run_dir) / "checkpoints"


def find_latest(run_dir: str | Path) -> Path | None:
    """The newest published checkpoint, or None if the run has none.

    The file ``latest`` is for people; the folders themselves decide, since a folder carries its final name only once
    it is whole.
    """
    published = complete(checkpoint_folder(run_dir))
    return published[-1] if published else None


def newest_intact(run_dir: str | Path, ranks: Ranks) -> Path | None:
    """The newest checkpoint of which every byte is as it was written, the same on all ranks; None if the run has none.

    Those that were not written to their end are removed. A damaged one is said, and set aside under another name.

    Raises:
        RankError: there are checkpoints, but none is intact: training would begin anew.
    """
    found, damages = find_intact(run_dir, ranks)
    if found is None and damages:
        raise RankError(none_intact(run_dir, damages.values()), is_reporter=ranks.is_first)
    agreed(ranks, lambda: set_aside(damages) if ranks.is_first else None)
    return found


def find_intact(run_dir: str | Path, ranks: Ranks) -> tuple[Path | None, dict[Path, str]]:
    """``newest_intact`` that lets damaged ones lie: it, and what is wrong with those that are newer."""
    root = checkpoint_folder(run_dir)
    agreed(ranks, lambda: remove_unfinished(root) if ranks.is_first else None)
    found: list[tuple[Path, bool]] = broadcast(
        [(folder, (folder / CHECKSUMS).is_file()) for folder in _all(root)][::-1]
    )
    damages: dict[Path, str] = {}
    for folder, is_complete in found:
        damage = damage_of(folder, ranks) if is_complete else f"{folder / CHECKSUMS} is missing"
        if damage is None:
            return folder, damages
        damages[folder] = damage
        if ranks.is_first:
            print(f"checkpoint {folder.name} is damaged and not used: {damage}", file=sys.stderr, flush=True)
    return None, damages


def none_intact(run_dir: str | Path, damages: Iterable[str], url: str | None = None) -> str:
    """That neither a run's folder nor the store at ``url`` has an intact checkpoint, and what to do."""
    store, too = ("", "") if url is None else (f" or at {url}", f" and what lies at {url}")
    return (
        f"no checkpoint of {run_dir}{store} is intact: {'; '.join(damages)}. Restore one from a copy to go on, or "
        f"delete {checkpoint_folder(run_dir)}{too} to start anew"
    )


def damage_of(folder: Path, ranks: Ranks) -> str | None:
    """What is wrong with the files of a complete checkpoint, the same on all ranks, which share the work."""
    sums = broadcast(_checksums(folder) if ranks.is_first else None)
    if isinstance(sums, str):
        return sums
    own: str | None = None
    try:
        for name in sorted(sums)[ranks.rank :: ranks.world_size]:
            digest = sha256_of(folder / name)
            if digest != sums[name]:
                own = f"{folder / name} has sha256 {digest[:12]}..., {CHECKSUMS} says {sums[name][:12]}..."
    except OSError as error:
        own = one_line(error)
    problems: list[str | None] = [None] * ranks.world_size
    dist.all_gather_object(problems, own)
    return next(filter(None, problems), None)


def load_checkpoint(engine: Any, folder: Path, ranks: Ranks) -> TrainState:
    """Load model, optimiser and state from an intact checkpoint into ``engine``; called by every rank.

    Raises:
        RankError: it does not go with this ZeRO stage or number of ranks.
    """
    state = agreed(ranks, lambda: read_state(folder))
    agreed(ranks, lambda: check_stage(folder, engine.zero_optimization_stage()))
    if ranks.is_first:
        remove_joined(folder.parent)
    if engine.load_universal_checkpoint():
        load_for_other_ranks(engine, folder, ranks)
    else:
        agreed(ranks, lambda: engine.load_checkpoint(str(folder.parent), tag=folder.name))
    return state


def _all(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if STEP_NAME.fullmatch(p.name)) if root.is_dir() else []


def complete(root: Path) -> list[Path]:
    """Published checkpoints in a folder of them, by rising step."""
    return [folder for folder in _all(root) if (folder / CHECKSUMS).is_file()]


def remove_unfinished(root: Path) -> None:
    """Remove what was begun in a folder of checkpoints and never published."""
    for folder in root.glob(f"{WRITING}*"):
        shutil.rmtree(folder)


def set_aside(damaged: Iterable[Path]) -> None:
    """Give damaged checkpoints a name that is none's."""
    for folder in damaged:
        aside = folder.with_name(f"{DAMAGED}{folder.name}")
        if aside.exists():
            shutil.rmtree(aside)
        folder.rename(aside)


def _checksums(folder: Path) -> dict[str, str] | str:
    """sha256 of each file by name, or what is wrong with that list."""
    try:
        sums = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"{folder / CHECKSUMS}: {one_line(error)}"
    if not isinstance(sums, dict) or not {STATE, "config.yaml"} <= sums.keys():
        return f"{folder / CHECKSUMS} does not list the files of a checkpoint"
    missing = sorted(name for name in sums if not (folder / name).is_file())
    return f"{folder / missing[0]} is missing" if missing else sums


def sha256_of(path: Path) -> str:
    """Of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
