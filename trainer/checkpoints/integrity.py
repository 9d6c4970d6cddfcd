"""Which checkpoint of a run is intact: every byte is as it was written."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from segclip.console import one_line
from segclip.rank_errors import RankError
from segclip.trainer.checkpoints.folder import (
    CHECKSUMS,
    checkpoint_folder,
    named_steps,
    remove_unfinished,
    set_aside,
)
from segclip.trainer.checkpoints.train_state import STATE
from segclip.trainer.distributed import Ranks, agreed, broadcast, gathered

__all__ = ["find_intact", "newest_intact", "none_intact", "sha256_of"]


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
        [(folder, (folder / CHECKSUMS).is_file()) for folder in named_steps(root)][::-1]
    )
    damages: dict[Path, str] = {}
    for folder, is_complete in found:
        damage = _damage_of(folder, ranks) if is_complete else f"{folder / CHECKSUMS} is missing"
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


def _damage_of(folder: Path, ranks: Ranks) -> str | None:
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
    return next(filter(None, gathered(own)), None)


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
