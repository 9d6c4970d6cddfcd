"""Where an exported network lies, found without loading anything: a wrong path is reported at once."""

from __future__ import annotations

from pathlib import Path

__all__ = ["CONFIG_FILE", "QUICKSTART_EXPORT", "WEIGHTS_FILE", "find_export", "quickstart_export"]

# As in segclip.models.checkpoint, whose import takes seconds.
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
QUICKSTART_EXPORT = Path("runs/quickstart/train/export")


def find_export(path: str | Path) -> Path:
    """The export folder or checkpoint file that ``path`` means.

    ``path`` may be an export folder, the folder of a finished run, which holds one as ``export``, or a released
    checkpoint file. The checkpoints within a run are not exports: ``segclip-export`` makes one of them.

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
    raise ValueError(
        f"{path} is no checkpoint: neither it nor {path / 'export'} holds {WEIGHTS_FILE} and {CONFIG_FILE}; "
        "give the export folder that training writes at its end"
    )


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
