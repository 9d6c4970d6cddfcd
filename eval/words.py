"""Lists of class words as users give them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = ["BACKGROUND_WORDS", "check_classes", "distinct_words", "parse_classes", "plain", "read_classes"]

BACKGROUND_WORDS = (
    "sky", "cloud", "wall", "floor", "ceiling", "building", "road", "ground", "grass", "tree", "forest",
    "mountain", "rock", "sand", "sea", "river", "snow", "window", "door", "curtain", "furniture", "wood",
    "metal", "cloth",
)  # fmt: skip
"""What is behind things in most photos; the words that ``background="words"`` takes for background."""


def plain(word: str) -> str:
    """What two spellings of one word have in common."""
    return " ".join(word.lower().split())


def distinct_words(kind: str, groups: Iterable[Sequence[str]]) -> set[str]:
    """All words of some classes as ``plain`` has them.

    Args:
        kind: what an error calls a class.
        groups: synonyms of each class.

    Raises:
        ValueError: an empty word, or a word that stands twice.
    """
    seen: set[str] = set()
    for number, group in enumerate(groups, start=1):
        if not group or any(not word.strip() for word in group):
            raise ValueError(f"{kind} {number} is empty; leave it out or name it")
        for word in group:
            if plain(word) in seen:
                raise ValueError(f"{kind} {word!r} stands twice; each needs words of its own")
            seen.add(plain(word))
    return seen


def check_classes(classes: Sequence[str | Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    """Classes as tuples of synonyms.

    Raises:
        ValueError: none given, an empty word, or a word that stands twice.
    """
    if isinstance(classes, str):
        raise ValueError(
            f"classes must be a list of words, got the single text {classes!r}; write [{classes!r}]"
        )
    if not classes:
        raise ValueError('no classes given; name at least one, such as --classes "red circle" sand')
    groups = tuple((each,) if isinstance(each, str) else tuple(each) for each in classes)
    distinct_words("class", groups)
    return tuple(tuple(word.strip() for word in group) for group in groups)


def parse_classes(lines: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """Classes as users type them: each a word or phrase, or synonyms with commas between them.

    Raises:
        ValueError: as ``check_classes``.
    """
    return check_classes([[word.strip() for word in line.split(",")] for line in lines])


def read_classes(path: str | Path) -> tuple[tuple[str, ...], ...]:
    """Classes of a text file, one a line as ``parse_classes`` takes them; empty lines and lines with # are passed over.

    Raises:
        ValueError: no such file, not text, no class in it, an empty word, or a word that stands twice.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"no such file of classes: {path}") from None
    except (UnicodeDecodeError, IsADirectoryError):
        raise ValueError(f"{path} is no text file of classes, one a line") from None
    lines = [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]
    if not lines:
        raise ValueError(f"{path} names no class; write one a line, synonyms with commas between them")
    try:
        return parse_classes(lines)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
