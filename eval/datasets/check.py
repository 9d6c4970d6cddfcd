"""What a result says of the images it was measured on: how many, which, and whether that is the whole split."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

from segclip.eval.datasets.dataset import SegmentationDataset

__all__ = ["DatasetCheck", "quick_check"]


@dataclass(frozen=True)
class DatasetCheck:
    """Identity of a list of images.

    Attributes:
        dataset, split: names.
        images: how many are in the list.
        expected_images: how many the published split has; None where nobody published one.
        keys_sha256: SHA-256 of the keys in their order, each followed by a newline.
        ok: nothing speaks against comparing with published numbers.
        warnings: what does, a sentence each.
    """

    dataset: str
    split: str
    images: int
    expected_images: int | None
    keys_sha256: str
    ok: bool
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return {**asdict(self), "warnings": list(self.warnings)}


def quick_check(dataset: SegmentationDataset) -> DatasetCheck:
    """Count the images and hash their keys; no file is opened."""
    warnings = []
    expected = dataset.expected_images
    if expected is not None and len(dataset) != expected:
        warnings.append(
            f"{len(dataset):,} images, but split {dataset.split!r} of {dataset.name} has {expected:,}: "
            "the score is not comparable with published ones"
        )
    keys = "".join(f"{key}\n" for key in dataset.keys)
    return DatasetCheck(
        dataset=dataset.name,
        split=dataset.split,
        images=len(dataset),
        expected_images=expected,
        keys_sha256=hashlib.sha256(keys.encode()).hexdigest(),
        ok=not warnings,
        warnings=tuple(warnings),
    )
