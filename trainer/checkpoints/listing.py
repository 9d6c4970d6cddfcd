"""What the checkpoints of a run are, in its folder or in a store: sizes, scores, why each is kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from segclip.data_pipelines.errors import OF_THE_SHARD, StoreError
from segclip.data_pipelines.storage.store import Store, open_store
from segclip.trainer.checkpoints.folder import CHECKSUMS, DAMAGED, checkpoint_folder
from segclip.trainer.checkpoints.store import DamagedError, Stored, checksums_of, stored
from segclip.trainer.checkpoints.train_state import STATE

__all__ = [
    "Row",
    "describe",
    "folder_size",
    "is_url",
    "open_checkpoints",
    "set_aside_folders",
    "size_text",
    "table",
]

PIECES = "_optim_states.pt"
HEADER = ("step", "written", "size", "ranks", "ZeRO", "mIoU", "state", "kept as")


@dataclass(frozen=True)
class Row:
    """A checkpoint as people want to see it; None is what cannot be told."""

    step: int
    written: datetime | None
    size: int
    ranks: int | None
    """Ranks that wrote it in pieces; None if it is whole, for any number."""
    stage: int | None
    miou: float | None
    """If this checkpoint was the best when it was written."""
    torn: str | None
    """Why it is not complete."""
    kept: tuple[str, ...]


def is_url(place: str) -> bool:
    return "://" in place


def open_checkpoints(place: str) -> Store:
    """The checkpoints of a run's folder, or those uploaded to a URL.

    Raises:
        ValueError: there is no such folder, or it holds no checkpoints; bad URL.
    """
    if is_url(place):
        return open_store(place)
    root = checkpoint_folder(place)
    if not root.is_dir():
        raise ValueError(f"{place} is no folder of a run with checkpoints: there is no {root}")
    return open_store(str(root))


def describe(store: Store) -> list[Row]:
    """All checkpoints, oldest first.

    Raises:
        ValueError: the store is out of reach, or holds none.
    """
    found = stored(store)
    if not found:
        raise ValueError(f"{store.url} holds no checkpoints")
    states = {each.step: _state(store, each) for each in found if each.is_complete}
    latest = max(states, default=None)
    best = (states[latest].get("best") or {}).get("step") if latest is not None else None
    return [_row(store, each, states.get(each.step, {}), latest, best) for each in found]


def set_aside_folders(place: str) -> list[Path]:
    """What a run found damaged in its folder and gave another name; none in a store, where they are deleted."""
    return [] if is_url(place) else sorted(checkpoint_folder(place).glob(f"{DAMAGED}*"))


def table(rows: Sequence[Row]) -> str:
    """The rows under their header, in columns."""
    cells = [HEADER, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEADER))]
    right = {"step", "size", "ranks", "ZeRO"}
    return "\n".join(
        "  ".join(
            text.rjust(width) if name in right else text.ljust(width)
            for text, width, name in zip(line, widths, HEADER, strict=True)
        ).rstrip()
        for line in cells
    )


def _row(store: Store, each: Stored, state: dict[str, Any], latest: int | None, best: int | None) -> Row:
    config = _parsed(store, each, "config.yaml")
    own = state.get("best") or {}
    every = (config.get("checkpoint") or {}).get("keep_every") or 0
    kept = [name for name, step in (("latest", latest), ("best", best)) if step == each.step]
    if each.is_complete and every and each.step % every == 0:
        kept.append(f"every {every}")
    last = each.entries.get(CHECKSUMS)
    times = [entry.modified for entry in each.entries.values() if entry.modified is not None]
    return Row(
        step=each.step,
        written=last.modified if last is not None else max(times, default=None),
        size=each.size,
        ranks=sum(name.endswith(PIECES) for name in each.entries) or None,
        stage=(config.get("zero") or {}).get("stage"),
        miou=own.get("miou") if own.get("step") == each.step else None,
        torn=_torn(store, each),
        kept=tuple(kept),
    )


def _torn(store: Store, each: Stored) -> str | None:
    if not each.is_complete:
        return f"no {CHECKSUMS}"
    try:
        missing = checksums_of(store, each).keys() - each.entries.keys()
    except DamagedError:
        return f"{CHECKSUMS} is damaged"
    return f"no {min(missing)}" if missing else None


def _state(store: Store, each: Stored) -> dict[str, Any]:
    return _parsed(store, each, STATE)


def _parsed(store: Store, each: Stored, name: str) -> dict[str, Any]:
    """A small file of a checkpoint; nothing if it is missing or damaged, which ``verify`` tells."""
    if name not in each.entries:
        return {}
    try:
        content = bytes(store.get(each.entries[name].path))
        found = json.loads(content) if name.endswith(".json") else yaml.safe_load(content)
    except StoreError as error:
        if error.cause not in OF_THE_SHARD:
            raise
        return {}
    except (ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _cells(row: Row) -> tuple[str, ...]:
    return (
        str(row.step),
        "?" if row.written is None else row.written.astimezone().strftime("%Y-%m-%d %H:%M:%S"),
        size_text(row.size),
        "any" if row.ranks is None else str(row.ranks),
        "?" if row.stage is None else str(row.stage),
        "-" if row.miou is None else f"{row.miou:.4f}",
        "complete" if row.torn is None else f"TORN ({row.torn})",
        ", ".join(row.kept) or "-",
    )


def size_text(count: int) -> str:
    """``1500000`` -> ``1.5 MB``."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:,.1f} {unit}"
    return f"{count} B"


def folder_size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
