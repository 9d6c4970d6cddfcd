"""Pixel counts of each image, kept so small that they can lie beside a result.

All figures of a data set are made of sums over its images. With the counts of each image at hand, the sums over any
selection of images are exact, which is what confidence intervals and comparisons rest on. An image holds few of the
classes, so its confusion matrix is almost empty: a row of a sparse matrix.

Columns for C classes: C * C of the confusion matrix (truth * C + prediction), then C each of the pixels that lie in the
boundary band of truth and prediction alike and have the same label, of the truth's band, of the prediction's band.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor

from segclip.eval.boundary import boundary, boundary_width
from segclip.eval.datasets.dataset import IGNORE

__all__ = ["ImageCounts", "Tally", "columns", "pair_counts", "read_counts"]

_FLUSH = 32  # images whose counts are kept on the device before they are fetched together
_PIXELS = 2**20  # counted at a time, so that memory does not grow with the image


def columns(classes: int) -> int:
    """Number of counts an image has."""
    return classes * classes + 3 * classes


@dataclass(frozen=True)
class ImageCounts:
    """One row of counts an image.

    Attributes:
        keys: the images.
        classes: C.
        rows: sparse int64 [images, C * C + 3 C]; columns as in the module's text.
    """

    keys: tuple[str, ...]
    classes: int
    rows: csr_matrix

    @staticmethod
    def none(classes: int) -> ImageCounts:
        """Of no image at all."""
        return ImageCounts((), classes, csr_matrix((0, columns(classes)), dtype=np.int64))

    @staticmethod
    def join(parts: Sequence[ImageCounts]) -> ImageCounts:
        """All images of several, sorted by key: the same however they were shared out.

        Raises:
            ValueError: an image is in two of them.
        """
        from scipy.sparse import vstack

        keys = [key for part in parts for key in part.keys]
        if len(set(keys)) != len(keys):
            twice = next(key for number, key in enumerate(keys) if key in keys[:number])
            raise ValueError(f"image {twice!r} was counted twice")
        order = sorted(range(len(keys)), key=keys.__getitem__)
        rows = vstack([part.rows for part in parts], format="csr")[order]
        return ImageCounts(tuple(keys[number] for number in order), parts[0].classes, csr_matrix(rows))

    def total(self) -> NDArray[np.int64]:
        """Sum over the images, int64 [C * C + 3 C]."""
        return np.asarray(self.rows.sum(axis=0), dtype=np.int64).reshape(-1)

    def confusion(self) -> NDArray[np.int64]:
        """Confusion matrix of all images, int64 [C, C]: truth by prediction."""
        size = self.classes
        return self.total()[: size * size].reshape(size, size)

    def write(self, folder: Path, stem: str) -> tuple[str, str]:
        """Write as ``STEM-counts-HASH.npz``; returns the file's name and SHA-256."""
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            keys=np.asarray(self.keys, dtype=np.str_),
            classes=np.int64(self.classes),
            starts=self.rows.indptr.astype(np.int64),
            columns=self.rows.indices.astype(np.int32),
            pixels=self.rows.data.astype(np.int64),
        )
        content = buffer.getvalue()
        digest = hashlib.sha256(content).hexdigest()
        name = f"{stem}-counts-{digest[:12]}.npz"
        (folder / name).write_bytes(content)
        return name, digest


def read_counts(path: Path, sha256: str) -> ImageCounts:
    """Read what ``ImageCounts.write`` wrote.

    Raises:
        ValueError: the file is missing or not the one that was written.
    """
    if not path.is_file():
        raise ValueError(f"{path} with the counts of each image is missing: keep it beside the result")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{path} is not the file its result was written with (another SHA-256)")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            keys, classes = tuple(str(key) for key in arrays["keys"]), int(arrays["classes"])
            rows = csr_matrix(
                (arrays["pixels"], arrays["columns"], arrays["starts"]), shape=(len(keys), columns(classes))
            )
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} does not read as counts of images ({error})") from error
    return ImageCounts(keys, classes, rows)


def pair_counts(truth_HW: Tensor, found_HW: Tensor, classes: int) -> Tensor:
    """int64 [C, C] on the tensors' device: pixels by truth and prediction, ``IGNORE`` left out. Waits for nothing."""
    counted = truth_HW.flatten() != IGNORE
    index = torch.where(counted, truth_HW.flatten() * classes + found_HW.flatten(), 0)
    counts = torch.zeros(classes * classes, dtype=torch.int64, device=truth_HW.device)
    return counts.scatter_add_(0, index, counted.long()).view(classes, classes)


class Tally:
    """Counts images on the device where they are predicted, without waiting for it after each of them."""

    def __init__(self, classes: int, device: torch.device) -> None:
        self._classes = classes
        self._device = device
        self._keys: list[str] = []
        self._waiting: list[Tensor] = []
        self._fetched: list[csr_matrix] = []

    def add(self, key: str, truth_HW: Tensor, found_HW: Tensor) -> None:
        """Count one image. Labels 0..C-1; ``IGNORE`` in the truth leaves a pixel out."""
        self._keys.append(key)
        self._waiting.append(image_counts(truth_HW, found_HW, self._classes))
        if len(self._waiting) == _FLUSH:
            self._fetch()

    def counts(self) -> ImageCounts:
        """All images added so far, in that order."""
        from scipy.sparse import vstack

        self._fetch()
        if not self._keys:
            return ImageCounts.none(self._classes)
        return ImageCounts(tuple(self._keys), self._classes, csr_matrix(vstack(self._fetched, format="csr")))

    def _fetch(self) -> None:
        if not self._waiting:
            return
        stacked = torch.stack(self._waiting)
        self._waiting.clear()
        wrong = int(stacked[:, -1].sum())
        assert not wrong, f"{wrong} labels outside 0..{self._classes - 1}"
        # Of thousands of columns a few dozen are not 0: those alone leave the device.
        places = stacked[:, :-2].nonzero()
        values = stacked[places[:, 0], places[:, 1]].cpu().numpy()
        rows, found = places.cpu().numpy().T
        shape = (len(stacked), columns(self._classes))
        self._fetched.append(csr_matrix((values, (rows, found)), shape=shape, dtype=np.int64))


def image_counts(truth_HW: Tensor, found_HW: Tensor, classes: int) -> Tensor:
    """int64 [C * C + 3 C + 2] on the tensors' device: the columns of an image, then what is in none of them, then
    labels that are none. Queues work and waits for none of it.
    """
    assert truth_HW.shape == found_HW.shape, (truth_HW.shape, found_HW.shape)
    ignored_HW = truth_HW == IGNORE
    width = boundary_width(int(truth_HW.shape[0]), int(truth_HW.shape[1]))
    bands = boundary(truth_HW, ignored_HW, width), boundary(found_HW, ignored_HW, width)
    flat = [each.flatten().split(_PIXELS) for each in (truth_HW, found_HW, ignored_HW, *bands)]
    # Each pixel is counted once: by truth, prediction, and whether it is in the one's band and in the other's.
    pairs = classes * classes
    counted = torch.zeros(4 * pairs + 2, dtype=torch.int64, device=truth_HW.device)
    for truth, found, ignored, true_band, found_band in zip(*flat, strict=True):
        truth, found = truth.long(), found.long()
        outside = (truth < 0) | (truth >= classes) | (found < 0) | (found >= classes)
        index = ((truth * classes + found) * 2 + true_band) * 2 + found_band
        index = index.masked_fill_(outside, 4 * pairs + 1).masked_fill_(ignored, 4 * pairs)
        if index.device.type == "cpu":
            counted += torch.bincount(index, minlength=len(counted))
        else:  # there bincount asks the device for the largest value first, and so waits for it
            counted.scatter_add_(0, index, torch.ones_like(index))
    by_band = counted[:-2].view(classes, classes, 2, 2)
    return torch.cat(
        [
            by_band.sum((2, 3)).flatten(),
            by_band[:, :, 1, 1].diagonal(),
            by_band[:, :, 1].sum((1, 2)),
            by_band[:, :, :, 1].sum((0, 2)),
            counted[-2:],
        ]
    )
