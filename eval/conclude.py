"""What the processes of an evaluation have counted, made into one result."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from segclip.eval.bootstrap import Figures, Resampling, figures, interval, per_image_sums
from segclip.eval.class_words import class_words
from segclip.eval.counts import ImageCounts
from segclip.eval.datasets.check import quick_check
from segclip.eval.datasets.dataset import SegmentationDataset
from segclip.eval.protocol import Protocol
from segclip.eval.result import FORMAT, ClassResult, ImageResult, Result
from segclip.eval.versions import versions
from segclip.eval.weights import weights_sha256
from segclip.models.segclip import SegCLIP

__all__ = ["Part", "conclude"]

_DENSE_ROWS = 512


@dataclass(frozen=True)
class Part:
    """What one process found on its images; ``conclude`` makes a result of all parts.

    Attributes:
        counts: of the images that were scored.
        digests: SHA-256 of the files of each of them, by key.
        skipped: why others were not, by key.
        seconds: time it took.
        device: where it ran.
        batch_size: windows in one call of the encoder.
        thresholds: of a threshold study, see ``segclip.eval.thresholds``.
        variants: of a study of words, a confusion matrix each, see ``segclip.eval.vocabulary``.
    """

    counts: ImageCounts
    digests: dict[str, str]
    skipped: dict[str, str]
    seconds: float
    device: str
    batch_size: int
    thresholds: NDArray[np.int64] | None = None
    variants: tuple[NDArray[np.int64], ...] = ()


def conclude(
    parts: Sequence[Part],
    model: SegCLIP,
    dataset: SegmentationDataset,
    protocol: Protocol,
    *,
    checkpoint: str | Path | None = None,
    resampling: Resampling | None = None,
    command: str | None = None,
) -> Result:
    """The result of parts that together cover ``dataset``; each number is that of one process on all of it.

    Args:
        parts: by ``evaluate_part`` of the same model and protocol, each image in one of them.
        model, dataset, protocol: what was scored.
        checkpoint: where the weights came from, for the record.
        resampling: of the confidence intervals; None for the usual.
        command: that was given, for the record.

    Raises:
        ValueError: no image could be read.
    """
    counts = ImageCounts.join([part.counts for part in parts])
    sums = per_image_sums(counts, dataset.has_background)
    confusion = counts.confusion()
    place = {key: number for number, key in enumerate(dataset.keys)}
    reasons = {key: why for part in parts for key, why in part.skipped.items()}
    skipped = [
        reasons[key] if reasons[key].startswith(f"{key}: ") else f"{key}: {reasons[key]}"
        for key in sorted(reasons, key=place.__getitem__)
    ]
    if not confusion.sum():
        why = f"; first: {skipped[0]}" if skipped else ""
        raise ValueError(f"no labelled pixel of data set {dataset.name!r} could be scored{why}")
    whole = figures(np.asarray(sums.sum(axis=0)), counts.classes)
    resampling = resampling or Resampling()
    drawn = resampling.draw(counts, dataset.has_background) if len(counts.keys) > 1 else None
    seconds = max(part.seconds for part in parts)
    digests = {key: digest for part in parts for key, digest in part.digests.items()}
    scored = sorted(counts.keys, key=place.__getitem__)
    return Result(
        format=FORMAT,
        dataset=dataset.name,
        split=dataset.split,
        has_background=dataset.has_background,
        miou=float(whole.miou_D[0]),
        accuracy=float(whole.pixel_accuracy_D[0]),
        mean_class_accuracy=_number(whole.mean_accuracy_D[0]),
        boundary_iou=_number(whole.boundary_miou_D[0]),
        coverage=_number(whole.coverage_D[0]),
        classes_found=int((confusion.diagonal() > 0).sum()),
        classes_present=int((confusion.sum(1) > 0).sum()),
        intervals=resampling.intervals(drawn) if drawn is not None else None,
        classes=_class_results(dataset, class_words(dataset, protocol), confusion, whole, drawn, resampling),
        images=len(scored),
        pixels=int(confusion.sum()),
        skipped=tuple(skipped),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
        per_image=_image_results(scored, counts, sums),
        protocol=protocol.model_dump(mode="json"),
        protocol_sha256=protocol.sha256,
        weights_sha256=weights_sha256(model),
        checkpoint=str(checkpoint) if checkpoint is not None else None,
        data_sha256=_joined_digest(scored, digests),
        dataset_check=quick_check(dataset),
        thresholds=None,
        vocabulary=None,
        command=command,
        ranks=len(parts),
        device=", ".join(sorted({part.device for part in parts})),
        batch_size=parts[0].batch_size,
        seconds=round(seconds, 3),
        images_per_second=round(len(scored) / seconds, 2),
        versions=versions(),
        image_counts=counts,
    )


def _class_results(
    dataset: SegmentationDataset,
    words: tuple[tuple[str, ...], ...],
    confusion: NDArray[np.int64],
    whole: Figures,
    drawn: Figures | None,
    resampling: Resampling,
) -> tuple[ClassResult, ...]:
    return tuple(
        ClassResult(
            name=name,
            words=words[number],
            iou=_number(whole.iou_DC[0, number]),
            iou_interval=interval(drawn.iou_DC[:, number], resampling.level) if drawn is not None else None,
            accuracy=_number(whole.accuracy_DC[0, number]),
            boundary_iou=_number(whole.boundary_iou_DC[0, number]),
            true_pixels=int(confusion[number].sum()),
            predicted_pixels=int(confusion[:, number].sum()),
        )
        for number, name in enumerate(dataset.classes)
    )


def _image_results(scored: Sequence[str], counts: ImageCounts, sums: csr_matrix) -> tuple[ImageResult, ...]:
    found: dict[str, ImageResult] = {}
    for start in range(0, len(scored), _DENSE_ROWS):
        keys = counts.keys[start : start + _DENSE_ROWS]
        each = figures(sums[start : start + _DENSE_ROWS].toarray(), counts.classes)
        for key, miou, accuracy in zip(keys, each.miou_D, each.pixel_accuracy_D, strict=True):
            found[key] = ImageResult(key, _number(miou), _number(accuracy))
    return tuple(found[key] for key in scored)


def _joined_digest(keys: Sequence[str], digests: dict[str, str]) -> str:
    joined = "".join(f"{key} {digests[key]}\n" for key in keys)
    return hashlib.sha256(joined.encode()).hexdigest()


def _number(value: float) -> float | None:
    """None for NaN, which JSON does not know."""
    return None if value != value else float(value)
