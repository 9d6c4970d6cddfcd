"""Segmentation data sets with pixel labels, read from the folders their authors publish."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from segclip.console import nearest
from segclip.eval.images import read_image, read_label

__all__ = ["DATASETS", "IGNORE", "Sample", "SegmentationDataset", "open_dataset", "voc_layout"]

Item = TypeVar("Item")

IGNORE = 255
"""Label value of pixels that are left out of every metric."""

VOC21_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip


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
        expected_images: how many images the published split has, or None.
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

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Sample:
        """Decode image and label.

        Raises:
            ValueError: a file does not decode, sizes differ, or the label holds a value outside the class
                list.
        """
        image_HW3 = read_image(self.image_paths[index])
        label_HW = read_label(self.label_paths[index]).astype(np.int64)
        if image_HW3.shape[:2] != label_HW.shape:
            raise ValueError(
                f"{self.keys[index]}: the image is {_size(image_HW3)} but its label is {_size(label_HW)} "
                f"pixels ({self.label_paths[index]})"
            )
        outside = np.unique(label_HW[(label_HW >= len(self.classes)) & (label_HW != IGNORE)])
        if outside.size:
            raise ValueError(
                f"{self.keys[index]}: label value {int(outside[0])} is outside the class list "
                f"(0..{len(self.classes) - 1}, or {IGNORE} for ignored; {self.label_paths[index]})"
            )
        return Sample(self.keys[index], image_HW3, label_HW)

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
        return self.pick(range(min(count, len(self))))


def _size(array: NDArray[np.generic]) -> str:
    return f"{array.shape[1]} x {array.shape[0]}"


def _check_words(words: tuple[tuple[str, ...], ...], where: str) -> None:
    seen: set[str] = set()
    for number, phrases in enumerate(words):
        if not phrases or any(not phrase.strip() for phrase in phrases):
            raise ValueError(f"{where}: class {number} has an empty name")
        for phrase in phrases:
            if phrase.strip().lower() in seen:
                raise ValueError(f"{where}: class name {phrase!r} stands twice")
            seen.add(phrase.strip().lower())


def read_split(path: Path) -> tuple[str, ...]:
    """The keys of a split file, one a line, blank lines skipped.

    Raises:
        ValueError: the file is missing or empty, or a key stands twice.
    """
    if not path.is_file():
        raise ValueError(f"split file {path} is missing; is the data root right and the data set complete?")
    keys = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    if not keys:
        raise ValueError(f"split file {path} is empty")
    if len(set(keys)) != len(keys):
        twice = next(key for number, key in enumerate(keys) if key in keys[:number])
        raise ValueError(f"split file {path} names {twice!r} twice")
    return keys


def voc_folder(root: str | Path) -> Path:
    """``VOC2012`` folder under ``root``, which may also be ``VOCdevkit`` or ``VOC2012`` itself."""
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"data root {root} is not a folder: give the one that holds VOCdevkit")
    for folder in (root / "VOCdevkit" / "VOC2012", root / "VOC2012", root):
        if (folder / "JPEGImages").is_dir():
            return folder
    raise ValueError(f"no VOCdevkit/VOC2012/JPEGImages under data root {root}")


def voc_layout(
    name: str,
    root: str | Path,
    classes: tuple[str, ...],
    *,
    words: tuple[tuple[str, ...], ...] | None = None,
    has_background: bool,
    split: str = "val",
    colours: tuple[tuple[int, int, int], ...] | None = None,
) -> SegmentationDataset:
    """Data set in the PASCAL VOC folders: JPEGImages, SegmentationClass (palette PNG),
    ImageSets/Segmentation.

    Raises:
        ValueError: a folder or the split file is missing, or an image has no label (or a label no image).
    """
    folder = voc_folder(root)
    words = words or tuple((each,) for each in classes)
    _check_words(words, f"data set {name}")
    keys = read_split(folder / "ImageSets" / "Segmentation" / f"{split}.txt")
    images = tuple(folder / "JPEGImages" / f"{key}.jpg" for key in keys)
    labels = tuple(folder / "SegmentationClass" / f"{key}.png" for key in keys)
    for key, image, label in zip(keys, images, labels, strict=True):
        if not image.is_file():
            raise ValueError(f"image {key!r} of split {split!r} is missing: {image}")
        if not label.is_file():
            raise ValueError(f"image {key!r} has no label: {label} is missing")
    return SegmentationDataset(name, classes, words, has_background, keys, images, labels, colours, split)


def _voc21(root: str | Path, split: str) -> SegmentationDataset:
    return voc_layout("voc21", root, VOC21_CLASSES, has_background=True, split=split)


def _scenes(root: str | Path, split: str) -> SegmentationDataset:
    """The captioned scenes: VOC folders plus ``classes.json`` with the class list."""
    folder = voc_folder(root)
    candidates = [base / "classes.json" for base in (folder, folder.parent, folder.parent.parent)]
    path = next((each for each in candidates if each.is_file()), None)
    if path is None:
        raise ValueError(f"classes.json with the class list is missing under data root {root}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error})") from error
    names = content.get("classes") if isinstance(content, dict) else content
    if not isinstance(names, list) or not names or not all(isinstance(each, str) for each in names):
        raise ValueError(f"{path} must hold a list of class names, or an object with one under 'classes'")
    return voc_layout("scenes", root, tuple(names), has_background=False, split=split)


DATASETS: dict[str, Callable[[str | Path, str], SegmentationDataset]] = {"scenes": _scenes, "voc21": _voc21}
"""Readers by the name that ``--dataset`` takes; each is called with the data root and the split's name."""


def open_dataset(name: str, root: str | Path, split: str = "val") -> SegmentationDataset:
    """The data set called ``name`` under ``root``.

    Raises:
        ValueError: no such data set (the nearest name is offered), or its files are not as they should be.
    """
    if name not in DATASETS:
        raise ValueError(
            f"unknown data set {name!r}{nearest(name, DATASETS)}; known: {', '.join(sorted(DATASETS))}"
        )
    return DATASETS[name](root, split)
