"""Segmentation data sets with pixel labels, read from the folders their authors publish."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from segclip.console import nearest
from segclip.eval.datasets import layouts
from segclip.eval.datasets.folder_sets import is_folder_set, load_folder_set
from segclip.eval.datasets.images import read_image, read_label
from segclip.eval.datasets.layouts import Files, find_base, locate
from segclip.eval.datasets.published import DATASETS, PUBLISHED
from segclip.eval.words import plain

__all__ = [
    "DATASETS", "IGNORE", "LabelValueError", "Sample", "SegmentationDataset", "describe", "open_dataset",
    "reduce_zero_label",
]  # fmt: skip

Item = TypeVar("Item")

IGNORE = 255
"""Label value of pixels that are left out of every metric."""


class LabelValueError(ValueError):
    """A label file holds a value that stands for no class."""


def reduce_zero_label(label_HW: NDArray[np.int64]) -> NDArray[np.int64]:
    """Labels that count from 1, as classes that count from 0; 0, "none of them", is ignored as ``IGNORE`` is."""
    return np.where((label_HW == 0) | (label_HW == IGNORE), IGNORE, label_HW - 1)


@dataclass(frozen=True)
class Sample:
    """One image with its truth: ``image_HW3`` uint8; ``label_HW`` int64, ``IGNORE`` where none is asked."""

    key: str
    image_HW3: NDArray[np.uint8]
    label_HW: NDArray[np.int64]


@dataclass(frozen=True)
class SegmentationDataset:
    """A list of image and label files with the names of the classes.

    Attributes:
        name: the name in the registry.
        classes: display name of each label value 0..C-1.
        words: for each class the phrases a text encoder is asked with; usually its name alone.
        has_background: label 0 means "none of the named classes".
        keys, image_paths, label_paths: one entry an image, in split order.
        colours: RGB of each class as the label files' authors chose them, or None.
        split: name of the list of images.
        expected_images: how many images the split has as published, or before it was cut; or None.
        reduce_zero_label: the files' value 0 is ignored and class 0 is their value 1.
    """

    name: str
    classes: tuple[str, ...]
    words: tuple[tuple[str, ...], ...]
    has_background: bool
    keys: tuple[str, ...]
    image_paths: tuple[Path, ...]
    label_paths: tuple[Path, ...]
    colours: tuple[tuple[int, int, int], ...] | None = None
    split: str = "val"
    expected_images: int | None = None
    reduce_zero_label: bool = False

    def __post_init__(self) -> None:
        if self.highest_value >= IGNORE:
            raise ValueError(
                f"data set {self.name!r} has {len(self.classes)} classes, which takes label values up to "
                f"{self.highest_value}; {IGNORE} stands for pixels that are not scored, so {IGNORE - 1} is the highest"
            )

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Sample:
        """Decode image and label.

        Raises:
            ValueError: a file does not decode, sizes differ, or the label holds a value outside the class
                list.
        """
        image_HW3 = read_image(self.image_paths[index])
        label_HW = read_label(self.label_paths[index])
        if image_HW3.shape[:2] != label_HW.shape:
            raise ValueError(
                f"{self.keys[index]}: the image is {_size(image_HW3)} but its label is {_size(label_HW)} "
                f"pixels ({self.label_paths[index]})"
            )
        highest = self.highest_value
        outside = np.unique(label_HW[(label_HW > highest) & (label_HW != IGNORE)])
        if outside.size:
            raise LabelValueError(
                f"{self.keys[index]}: label value {int(outside[0])} is outside the class list "
                f"(0..{highest}, or {IGNORE} for ignored; {self.label_paths[index]}); "
                f"segclip-doctor dataset says why"
            )
        return Sample(
            self.keys[index], image_HW3, reduce_zero_label(label_HW) if self.reduce_zero_label else label_HW
        )

    @property
    def highest_value(self) -> int:
        """Highest value of a label file that stands for a class."""
        return len(self.classes) - (not self.reduce_zero_label)

    def pick(self, numbers: Sequence[int]) -> SegmentationDataset:
        """The images at ``numbers``, in that order."""

        def chosen(items: tuple[Item, ...]) -> tuple[Item, ...]:
            return tuple(items[number] for number in numbers)

        return replace(
            self,
            keys=chosen(self.keys),
            image_paths=chosen(self.image_paths),
            label_paths=chosen(self.label_paths),
        )

    def first(self, count: int | None) -> SegmentationDataset:
        """The same data set cut to its first ``count`` images (None: all)."""
        if count is None:
            return self
        if count < 1:
            raise ValueError(f"the number of images must be at least 1, got {count}")
        # Of a split that nobody published it is told as well that it is not the whole.
        whole = len(self) if self.expected_images is None else self.expected_images
        return replace(self.pick(range(min(count, len(self)))), expected_images=whole)


def _size(array: NDArray[np.generic]) -> str:
    return f"{array.shape[1]} x {array.shape[0]}"


def _check_names(classes: tuple[str, ...], words: tuple[tuple[str, ...], ...], where: str) -> None:
    """Refuse names and words that are empty or stand twice."""
    seen: set[str] = set()
    for name in classes:
        if plain(name) in seen:
            raise ValueError(f"{where}: class name {name!r} stands twice")
        seen.add(plain(name))
    owner: dict[str, str] = {}
    for number, (name, phrases) in enumerate(zip(classes, words, strict=True)):
        if not name.strip() or not phrases or any(not phrase.strip() for phrase in phrases):
            raise ValueError(f"{where}: class {number} has an empty name")
        for phrase in phrases:
            if plain(phrase) in owner:
                other = owner[plain(phrase)]
                raise ValueError(f"{where}: word {phrase!r} of {name!r} stands for {other!r} as well")
            owner[plain(phrase)] = name


def describe(name: str, root: str | Path | None, split: str = "val") -> tuple[SegmentationDataset, Files]:
    """The data set called ``name`` with where its files should be; they need not be there.

    Raises:
        ValueError: no such data set (the nearest name is offered), no such folder or split, or a class list with an
            empty name or one that stands twice.
    """
    if is_folder_set(name):
        own = load_folder_set(name)
        files = locate(
            own.layout(), own.name, root if root is not None else Path(name).parent / own.root, split
        )
        dataset = _dataset(own.name, own.names(), files, split, own.background, words=own.words())
        return replace(dataset, reduce_zero_label=own.reduce_zero_label), files
    if name not in DATASETS:
        raise ValueError(
            f"unknown data set {name!r}{nearest(name, DATASETS)}; known: {', '.join(DATASETS)}, or the path of a .yaml "
            "file for folders of your own"
        )
    if root is None:
        raise ValueError(
            f"data set {name} needs the folder it lies in: --data-root, or --root of segclip-doctor"
        )
    if name == "scenes":
        files = locate(layouts.VOC, name, root, split)
        return _dataset(name, _scene_classes(find_base(layouts.VOC, name, root)), files, split, False), files
    known = PUBLISHED[name]
    files = locate(known.layout, name, root, split)
    dataset = _dataset(name, known.classes, files, split, known.has_background)
    return (
        replace(dataset, reduce_zero_label=known.reduce_zero_label, expected_images=known.images.get(split)),
        files,
    )


def _dataset(
    name: str,
    classes: tuple[str, ...],
    files: Files,
    split: str,
    has_background: bool,
    words: tuple[tuple[str, ...], ...] | None = None,
) -> SegmentationDataset:
    words = words or tuple((each,) for each in classes)
    _check_names(classes, words, f"data set {name}")
    return SegmentationDataset(
        name, classes, words, has_background, files.keys, files.images, files.labels, split=split
    )


def _scene_classes(folder: Path) -> tuple[str, ...]:
    """The class list of captioned scenes, from ``classes.json`` in or above their folder."""
    candidates = [base / "classes.json" for base in (folder, folder.parent, folder.parent.parent)]
    path = next((each for each in candidates if each.is_file()), None)
    if path is None:
        raise ValueError(f"classes.json with the class list is missing in {folder}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error})") from error
    names = content.get("classes") if isinstance(content, dict) else content
    if not isinstance(names, list) or not names or not all(isinstance(each, str) for each in names):
        raise ValueError(f"{path} must hold a list of class names, or an object with one under 'classes'")
    return tuple(names)


def open_dataset(name: str, root: str | Path | None = None, split: str = "val") -> SegmentationDataset:
    """The data set called ``name`` under ``root``, every image and label of it there.

    Args:
        name: one of ``DATASETS``, or the path of a YAML file (``segclip.eval.datasets.folder_sets``).
        root: folder it lies in; a YAML file says its own where this is None.
        split: name of the list of images.

    Raises:
        ValueError: no such data set (the nearest name is offered), or its files are not as they should be.
    """
    dataset, files = describe(name, root, split)
    no_image, no_label = files.missing()
    if no_image:
        number = no_image[0]
        raise ValueError(
            f"image {files.keys[number]!r} of split {split!r} is missing: {files.images[number]}"
            + _more(no_image)
        )
    if no_label:
        number = no_label[0]
        raise ValueError(
            f"image {files.keys[number]!r} has no label: {files.labels[number]} is missing"
            + _more(no_label)
            + (f"; {files.labels_made_by} writes these files" if files.labels_made_by else "")
        )
    return dataset


def _more(numbers: Sequence[int]) -> str:
    return f" (and {len(numbers) - 1:,} more)" if len(numbers) > 1 else ""
