"""Which picture files a command line means, and where what is made of them goes."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ENDINGS", "Found", "find_pictures", "output_stems"]

ENDINGS = frozenset(
    (
        ".jpg",
        ".jpeg",
        ".jpe",
        ".png",
        ".webp",
        ".bmp",
        ".gif",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".jp2",
        ".avif",
    )
)
"""Endings by which a picture in a folder is known. A file that is named itself may have any."""


@dataclass(frozen=True)
class Found:
    """Pictures in the order they were named, and files of folders and patterns that are none by their ending."""

    pictures: tuple[Path, ...]
    others: tuple[Path, ...]


def find_pictures(names: Sequence[str | Path]) -> Found:
    """Pictures that files, folders and patterns name; each file once.

    Args:
        names: a file; a folder, for the pictures directly in it; or a pattern with ``*``, ``?``, ``[…]`` or ``**``, as
            the shell would have replaced it if it had not been quoted.

    Raises:
        ValueError: a name stands for nothing, or for no picture.
    """
    pictures: dict[Path, Path] = {}
    others: dict[Path, None] = {}
    for name in names:
        path = Path(name)
        if path.is_dir():
            listed = sorted(each for each in path.iterdir() if each.is_file())
        elif path.exists():
            # The user's own choice, whatever its ending: what does not decode is said then.
            pictures.setdefault(path.resolve(), path)
            continue
        elif glob.has_magic(str(name)):
            listed = sorted(
                each for each in map(Path, glob.glob(str(name), recursive=True)) if each.is_file()
            )
            if not listed:
                raise ValueError(f"no file matches {str(name)!r}")
        else:
            raise ValueError(
                f"no such image file: {name}; give picture files or folders first, then --classes"
            )
        known = [each for each in listed if each.suffix.lower() in ENDINGS]
        others |= {each: None for each in listed if each.suffix.lower() not in ENDINGS}
        if not known:
            what = "folder" if path.is_dir() else "pattern"
            raise ValueError(
                f"no picture in {what} {name}: none of its {len(listed)} files ends in {_endings()}"
            )
        for each in known:
            pictures.setdefault(each.resolve(), each)
    return Found(tuple(pictures.values()), tuple(others))


def _endings() -> str:
    return ", ".join(sorted(ENDINGS))


def output_stems(pictures: Iterable[Path]) -> list[str]:
    """File names without ending, numbered where several pictures share one, whatever its case."""
    stems: list[str] = []
    taken: set[str] = set()
    for path in pictures:
        stem, number = path.stem, 2
        while stem.lower() in taken:
            stem, number = f"{path.stem}-{number}", number + 1
        stems.append(stem)
        taken.add(stem.lower())
    return stems
