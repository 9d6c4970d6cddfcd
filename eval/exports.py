"""Where an exported network lies, found without loading anything: a wrong path is reported at once."""

from __future__ import annotations

import re
from pathlib import Path

from segclip.models.files import CONFIG_FILE, WEIGHTS_FILE

__all__ = [
    "QUICKSTART_EXPORT",
    "find_export",
    "is_training_checkpoint",
    "newest_training_checkpoint",
    "quickstart_export",
]

QUICKSTART_EXPORT = Path("runs/quickstart/train/export")


def find_export(path: str | Path) -> Path:
    """The export folder, checkpoint file or training checkpoint that ``path`` means.

    ``path`` may be an export folder; the folder of a run, which holds one as ``export`` once it has ended and
    training checkpoints before; a training checkpoint (``RUN/checkpoints/step-...``); or a released checkpoint file.

    Raises:
        ValueError: there is nothing that can be loaded.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.exists():
        raise ValueError(
            f"no checkpoint at {path}: there is no such file or folder; "
            "give an export folder, the folder of a run, or a checkpoint file"
        )
    for folder in (path, path / "export"):
        if (folder / WEIGHTS_FILE).is_file() and (folder / CONFIG_FILE).is_file():
            return folder
    if is_training_checkpoint(path):
        return path
    newest = newest_training_checkpoint(path)
    if newest is not None:
        return newest
    raise ValueError(
        f"{path} is no checkpoint: neither it nor {path / 'export'} holds {WEIGHTS_FILE} and {CONFIG_FILE}, and "
        "it is neither a training checkpoint nor a run with one; give the export folder that training writes at its end"
    )


def is_training_checkpoint(path: str | Path) -> bool:
    """Whether ``path`` is a whole checkpoint of training: its checksums are written last."""
    return (Path(path) / "config.yaml").is_file() and (Path(path) / "checksums.json").is_file()


def newest_training_checkpoint(run: str | Path) -> Path | None:
    """The newest whole checkpoint of a run's folder, None if there is none."""
    steps = [each for each in Path(run).glob("checkpoints/step-*") if re.fullmatch(r"step-\d+", each.name)]
    whole = [each for each in steps if is_training_checkpoint(each)]
    return max(whole, key=lambda each: int(each.name.partition("-")[2]), default=None)


def quickstart_export() -> Path:
    """The network that ``make quickstart`` trained here, for who names no other.

    Raises:
        ValueError: there is none.
    """
    if not QUICKSTART_EXPORT.is_dir():
        raise ValueError(
            f"no --checkpoint given, and no quickstart has left one in {QUICKSTART_EXPORT}; "
            "run `make quickstart`, or give --checkpoint"
        )
    return find_export(QUICKSTART_EXPORT)
