"""How much a score hangs on the words: the same images under synonyms, and among distractors.

A set of synonyms replaces the words of every class that it has one for. Distractors are words for what no image shows,
asked besides the classes: a pixel that one of them gets is wrong, whatever it truly is. A file says which:

synonyms:
  aeroplane: [airplane, plane]     # by the data set's name of the class, or by a word that the protocol asks it with
distractors: [submarine, dinosaur]
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, model_validator

from segclip.console import nearest
from segclip.eval.class_words import class_words
from segclip.eval.datasets.dataset import SegmentationDataset
from segclip.eval.metrics import class_iou
from segclip.eval.protocol import Protocol
from segclip.eval.result import VocabularyStudy, VocabularyVariant
from segclip.eval.words import distinct_words, plain
from segclip.eval.yaml_files import read_mapping, validated

__all__ = ["Variant", "Vocabulary", "load_vocabulary", "variant_result", "variants"]

Words = tuple[tuple[str, ...], ...]

_BACKGROUND = -1


class WordSets(BaseModel):
    """What the file says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    synonyms: dict[str, tuple[str, ...]] = {}
    distractors: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _words(self) -> Self:
        if not self.synonyms and not self.distractors:
            raise ValueError("neither `synonyms` nor `distractors` are given")
        distinct_words("distractor", ((word,) for word in self.distractors))
        for name, words in self.synonyms.items():
            if not words:
                raise ValueError(f"{name!r} has no synonym")
            distinct_words(f"synonym of {name!r}:", ((word,) for word in words))
        return self


class Vocabulary(WordSets):
    """The words with where they lay, and the SHA-256 of the file."""

    source: str = "default"
    source_sha256: str = ""


@dataclass(frozen=True)
class Variant:
    """One other way to ask.

    Attributes:
        name: as in the result.
        phrases: synonyms of each class, background left out; distractors, if there are any, as one class more.
        replaced: word by class.
        added: distractors.
    """

    name: str
    phrases: Words
    replaced: dict[str, str]
    added: tuple[str, ...] = ()


def load_vocabulary(path: str | Path | None = None) -> Vocabulary:
    """The words of a YAML file; those that come with the package for None.

    Raises:
        ValueError: no such file, or a field is wrong (the field is named).
    """
    if path is None:
        content = (resources.files("segclip") / "configs" / "vocabularies" / "default.yaml").read_bytes()
        where = "default"
    else:
        if not Path(path).is_file():
            raise ValueError(f"vocabulary file {path} does not exist")
        content, where = Path(path).read_bytes(), str(path)
    words = validated(WordSets, read_mapping(content, f"vocabulary {where}"), f"vocabulary {where}")
    return Vocabulary(source=where, source_sha256=hashlib.sha256(content).hexdigest(), **words.model_dump())


def variants(vocabulary: Vocabulary, dataset: SegmentationDataset, protocol: Protocol) -> tuple[Variant, ...]:
    """The ways to ask on this data set: ``synonyms 1``, ``synonyms 2``, ... and ``distractors``.

    The n-th set takes the n-th synonym of each class, and begins anew where a class has fewer. Words that stand for
    another class of the data set, or for its background, are left out; what is given for two classes is the first's.

    Raises:
        ValueError: nothing of the vocabulary applies to the data set.
    """
    first = 1 if dataset.has_background else 0
    every = class_words(dataset, protocol)
    names, asked = dataset.classes[first:], every[first:]
    owner: dict[str, int] = {}
    for number, words in enumerate(asked):
        for word in (names[number], *words):
            owner.setdefault(plain(word), number)
    for word in every[0] if first else ():
        owner.setdefault(plain(word), _BACKGROUND)
    known: dict[int, list[str]] = {}
    taken = dict(owner)
    for key, synonyms in vocabulary.synonyms.items():
        number = owner.get(plain(key), _BACKGROUND)
        if number == _BACKGROUND:
            continue
        usable = [word for word in synonyms if taken.setdefault(plain(word), number) == number]
        if usable:
            known[number] = usable
    found = []
    for place in range(max((len(words) for words in known.values()), default=0)):
        chosen = {number: words[place % len(words)] for number, words in known.items()}
        phrases = tuple(
            (chosen[number],) if number in chosen else words for number, words in enumerate(asked)
        )
        replaced = {names[number]: word for number, word in sorted(chosen.items())}
        found.append(Variant(f"synonyms {place + 1}", phrases, replaced))
    added = tuple(word for word in vocabulary.distractors if plain(word) not in taken)
    if added:
        found.append(Variant("distractors", (*asked, added), {}, added))
    if not found:
        key = next(iter(vocabulary.synonyms), "")
        raise ValueError(
            f"vocabulary {vocabulary.source} has neither synonyms nor distractors for data set {dataset.name!r}"
            + (f": it has no class {key!r}{nearest(plain(key), owner)}" if key else "")
        )
    return tuple(found)


def variant_result(variant: Variant, confusion: NDArray[np.int64], classes: int) -> VocabularyVariant:
    """Figures of one variant.

    Args:
        variant: how was asked.
        confusion: int64 [C, C] or, with distractors, [C + 1, C + 1]: no pixel is truly a distractor.
        classes: C of the data set, with its background.
    """
    iou = class_iou(torch.from_numpy(confusion))[:classes]
    total = int(confusion.sum())
    return VocabularyVariant(
        name=variant.name,
        miou=float(iou.nanmean()),
        replaced=variant.replaced,
        added=variant.added,
        taken=float(confusion[:, classes:].sum() / total) if total else 0.0,
    )


def study(
    vocabulary: Vocabulary,
    asked: Sequence[Variant],
    confusions: Sequence[NDArray[np.int64]],
    classes: int,
    miou: float,
) -> VocabularyStudy:
    """All variants beside the main figure."""
    return VocabularyStudy(
        source=vocabulary.source,
        source_sha256=vocabulary.source_sha256,
        miou=miou,
        variants=tuple(
            variant_result(variant, confusion, classes)
            for variant, confusion in zip(asked, confusions, strict=True)
        ),
    )
