"""The words by which a protocol asks for the classes of a data set, and whether the two go together at all."""

from __future__ import annotations

from segclip.eval.datasets.dataset import SegmentationDataset
from segclip.eval.protocol import Protocol

__all__ = ["class_words"]


def class_words(dataset: SegmentationDataset, protocol: Protocol) -> tuple[tuple[str, ...], ...]:
    """The phrases each class is asked by; none for a background that a threshold decides.

    Raises:
        ValueError: the protocol does not cover the data set, has a background where the data set has none or the other
            way round, or its class list does not fit.
    """
    rule = protocol.rule(dataset.name)
    if dataset.has_background and rule.background == "none":
        raise ValueError(
            f"data set {dataset.name!r} has a background class, but protocol {protocol.name!r} gives no "
            f"background rule for it: in a copy of it, list under `datasets` {dataset.name!r} with `background` and "
            "its `threshold` or `background_words`"
        )
    if not dataset.has_background and rule.background != "none":
        raise ValueError(
            f"protocol {protocol.name!r} has a background rule for data set {dataset.name!r}, which has no "
            "background class"
        )
    first = int(dataset.has_background)
    named = rule.phrases() or dataset.words[first:]
    if len(named) != len(dataset.classes) - first:
        raise ValueError(
            f"protocol {protocol.name!r} names {len(named)} classes for data set {dataset.name!r}, "
            f"which has {len(dataset.classes) - first}"
        )
    rule.check_words(named)
    return ((rule.background_words,) if first else ()) + named
