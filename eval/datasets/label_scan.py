"""Reading every image and label file of a data set: what they hold, and which do not read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from segclip.console import one_line
from segclip.eval.datasets.images import image_mode, read_image, read_label
from segclip.processes import Tick

__all__ = ["Entry", "Scan", "scan"]

Entry = tuple[str, Path, Path]
"""Key, image and label file."""


@dataclass
class Scan:
    """What some files hold.

    Attributes:
        images: how many were read.
        pixels, files, example: by value of the label files: pixels, files that hold it, key of one of them.
        label_modes, image_modes: how the files are encoded, in Pillow's words.
        smallest, largest: image size (width, height) by number of pixels.
        unreadable_images, unreadable_labels, other_sizes: one line for each file that is wrong.
    """

    images: int = 0
    pixels: Counter[int] = field(default_factory=Counter)
    files: Counter[int] = field(default_factory=Counter)
    example: dict[int, str] = field(default_factory=dict)
    label_modes: Counter[str] = field(default_factory=Counter)
    image_modes: Counter[str] = field(default_factory=Counter)
    smallest: tuple[int, int] | None = None
    largest: tuple[int, int] | None = None
    unreadable_images: list[str] = field(default_factory=list)
    unreadable_labels: list[str] = field(default_factory=list)
    other_sizes: list[str] = field(default_factory=list)

    def add(self, other: Scan) -> None:
        """Take what was found in other files as well."""
        self.images += other.images
        self.pixels.update(other.pixels)
        self.files.update(other.files)
        self.label_modes.update(other.label_modes)
        self.image_modes.update(other.image_modes)
        self.example = {**other.example, **self.example}
        for size in (other.smallest, other.largest):
            if size is not None:
                self._size(size)
        self.unreadable_images += other.unreadable_images
        self.unreadable_labels += other.unreadable_labels
        self.other_sizes += other.other_sizes

    def _size(self, size: tuple[int, int]) -> None:
        area = size[0] * size[1]
        if self.smallest is None or area < self.smallest[0] * self.smallest[1]:
            self.smallest = size
        if self.largest is None or area > self.largest[0] * self.largest[1]:
            self.largest = size

    def read(self, key: str, image: Path, label: Path) -> None:
        """Decode the two files of an entry; what is wrong with them is noted, not raised."""
        self.images += 1
        size = None
        try:
            self.image_modes[image_mode(image)] += 1
            image_HW3 = read_image(image)
            size = (image_HW3.shape[1], image_HW3.shape[0])
            self._size(size)
        except (ValueError, OSError) as error:
            self.unreadable_images.append(f"{key}: {one_line(error)}")
        try:
            self.label_modes[image_mode(label)] += 1
            label_HW = read_label(label)
        except (ValueError, OSError) as error:
            self.unreadable_labels.append(f"{key}: {one_line(error)}")
            return
        if size is not None and size != label_HW.shape[::-1]:
            self.other_sizes.append(
                f"{key}: image {size[0]} x {size[1]}, label {label_HW.shape[1]} x {label_HW.shape[0]}"
            )
        values, counts = np.unique(label_HW, return_counts=True)
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            self.pixels[value] += count
            self.files[value] += 1
            self.example.setdefault(value, key)


def scan(entries: Sequence[Entry], tick: Tick) -> Scan:
    """Read some entries."""
    found = Scan()
    for key, image, label in entries:
        found.read(key, image, label)
        tick()
    return found
