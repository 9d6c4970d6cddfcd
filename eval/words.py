"""Lists of class words as users give them."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["BACKGROUND_WORDS", "check_classes"]

BACKGROUND_WORDS = (
    "sky", "cloud", "wall", "floor", "ceiling", "building", "road", "ground", "grass", "tree", "forest",
    "mountain", "rock", "sand", "sea", "river", "snow", "window", "door", "curtain", "furniture", "wood",
    "metal", "cloth",
)  # fmt: skip
"""What is behind things in most photos; the words that ``background="words"`` takes for background."""


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
    seen: set[str] = set()
    for number, group in enumerate(groups, start=1):
        if not group or any(not word.strip() for word in group):
            raise ValueError(f"class {number} of {len(groups)} is an empty word; leave it out or name it")
        for word in group:
            plain = " ".join(word.lower().split())
            if plain in seen:
                raise ValueError(f"class {word!r} is given twice; every class needs its own words")
            seen.add(plain)
    return tuple(tuple(word.strip() for word in group) for group in groups)
