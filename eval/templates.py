"""Named sets of sentences that class words are put into."""

from __future__ import annotations

from collections.abc import Callable

from segclip.console import nearest

__all__ = ["TEMPLATE_SETS", "template_set"]


def _openai_80() -> tuple[str, ...]:
    from open_clip import OPENAI_IMAGENET_TEMPLATES  # slow to import

    return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)


TEMPLATE_SETS: dict[str, Callable[[], tuple[str, ...]]] = {"openai_80": _openai_80}
"""``openai_80``: the 80 with which OpenAI measured CLIP on ImageNet."""


def template_set(name: str) -> tuple[str, ...]:
    """The sentences of the set called ``name``, each with {} in the place of the word.

    Raises:
        ValueError: no such set (the nearest name is offered).
    """
    if name not in TEMPLATE_SETS:
        raise ValueError(
            f"unknown set of templates{nearest(name, TEMPLATE_SETS)}; known: {', '.join(TEMPLATE_SETS)}, or list "
            "the sentences"
        )
    return TEMPLATE_SETS[name]()
