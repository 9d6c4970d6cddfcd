"""Scoring a model on a data set under a protocol."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress
from scipy.sparse import csr_matrix
from torch import Tensor

from segclip.console import progress as progress_bar
from segclip.eval.bootstrap import Figures, Resampling, figures, interval, per_image_sums
from segclip.eval.counts import ImageCounts, Tally
from segclip.eval.dataset_check import quick_check
from segclip.eval.datasets import Sample, SegmentationDataset
from segclip.eval.inference import ClassScorer, Prediction, predict, resize, scorer_words
from segclip.eval.protocol import Geometry, Protocol
from segclip.eval.result import FORMAT, ClassResult, ImageResult, Result
from segclip.eval.text import TextBank
from segclip.eval.versions import versions
from segclip.eval.weights import weights_sha256
from segclip.models.segclip import SegCLIP

__all__ = [
    "ClassResult",
    "ImageResult",
    "Part",
    "Result",
    "build_scorer",
    "class_words",
    "conclude",
    "evaluate",
    "evaluate_part",
    "predict_dataset",
]

_READERS = 2
_READ_AHEAD = 64
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
    """

    counts: ImageCounts
    digests: dict[str, str]
    skipped: dict[str, str]
    seconds: float
    device: str
    batch_size: int


def build_scorer(model: SegCLIP, dataset: SegmentationDataset, protocol: Protocol) -> ClassScorer:
    """The data set's words under the protocol, embedded by the model.

    Raises:
        ValueError: the protocol does not cover the data set, or its class list does not fit it.
    """
    rule = protocol.rule(dataset.name)
    first = 1 if dataset.has_background else 0
    if dataset.has_background and rule.background == "none":
        raise ValueError(
            f"data set {dataset.name!r} has a background class, but protocol {protocol.name!r} gives no "
            "background rule for it"
        )
    if not dataset.has_background and rule.background != "none":
        raise ValueError(
            f"protocol {protocol.name!r} has a background rule for data set {dataset.name!r}, which has no "
            "background class"
        )
    phrases = rule.phrases() or dataset.words[first:]
    wanted = len(dataset.classes) - first
    if len(phrases) != wanted:
        raise ValueError(
            f"protocol {protocol.name!r} names {len(phrases)} classes for data set {dataset.name!r}, "
            f"which has {wanted}"
        )
    bank = TextBank(model, protocol.templates, protocol.template_averaging)
    return scorer_from_phrases(
        model, phrases, bank, protocol, threshold=rule.threshold, background_words=rule.background_words
    )


def scorer_from_phrases(
    model: SegCLIP,
    phrases: tuple[tuple[str, ...], ...],
    bank: TextBank,
    protocol: Protocol,
    *,
    threshold: float | None = None,
    background_words: tuple[str, ...] = (),
) -> ClassScorer:
    """Scorer for one list of synonyms a class; background words are label 0, then the classes follow."""
    groups = (background_words, *phrases) if background_words else phrases
    words, labels = scorer_words(groups)
    text_NE = bank(words)
    one_each = labels == list(range(len(words)))
    with torch.no_grad():
        logit_scale = float(model.temperature())
    return ClassScorer(
        text_NE,
        logit_scale,
        rule=protocol.score,
        top_k=protocol.top_k,
        word_label_N=None if one_each else torch.tensor(labels, device=text_NE.device),
        threshold=threshold,
    )


@dataclass
class _Read:
    """Samples in order, read ahead by threads; what does not decode is noted or raised."""

    dataset: SegmentationDataset
    geometry: Geometry
    on_error: Literal["stop", "skip"]
    skipped: dict[str, str]
    digests: dict[str, str] | None
    waiting: deque[Sample]

    def _one(self, index: int) -> tuple[Sample, Tensor]:
        sample = self.dataset[index]
        if self.digests is not None:
            self.digests[sample.key] = _files_digest(
                self.dataset.image_paths[index], self.dataset.label_paths[index]
            )
        return sample, resize(sample.image_HW3, self.geometry)

    def images(self) -> Iterator[tuple[Tensor, tuple[int, int]]]:
        """Resized images for the encoder; their samples are put into ``waiting`` in the same order."""
        futures: deque[tuple[int, Future[tuple[Sample, Tensor]]]] = deque()
        with ThreadPoolExecutor(_READERS) as pool:
            try:
                following = 0
                while futures or following < len(self.dataset):
                    while following < len(self.dataset) and len(futures) < _READ_AHEAD:
                        futures.append((following, pool.submit(self._one, following)))
                        following += 1
                    index, future = futures.popleft()
                    try:
                        sample, image_3hw = future.result()
                    except ValueError as error:
                        if self.on_error == "stop":
                            raise
                        self.skipped[self.dataset.keys[index]] = str(error)
                        continue
                    self.waiting.append(sample)
                    yield image_3hw, (sample.label_HW.shape[0], sample.label_HW.shape[1])
            finally:
                for _, future in futures:
                    future.cancel()


def _files_digest(*paths: Path) -> str:
    """Hash of the bytes of an image file and its label file, which have just been read."""
    return hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in paths)).hexdigest()


def predict_dataset(
    model: SegCLIP,
    dataset: SegmentationDataset,
    protocol: Protocol,
    *,
    batch_size: int = 32,
    on_error: Literal["stop", "skip"] = "stop",
    skipped: dict[str, str] | None = None,
    digests: dict[str, str] | None = None,
) -> Iterator[tuple[Sample, Prediction]]:
    """Each sample with its prediction, in order.

    Args:
        model: its mode is left as it is; use evaluation mode.
        dataset, protocol: what to predict, and how.
        batch_size: windows in one call of the encoder; does not change the result.
        on_error: ``stop`` raises on the first image that does not read; ``skip`` goes on.
        skipped: gets the reason for each image left out, by its key.
        digests: gets the SHA-256 of the files of each image by its key; None: they are not hashed.
    """
    geometry = protocol.geometry(model.config)
    scorer = build_scorer(model, dataset, protocol)
    reader = _Read(dataset, geometry, on_error, skipped if skipped is not None else {}, digests, deque())
    for prediction in predict(model, reader.images(), scorer, geometry, batch_size=batch_size):
        yield reader.waiting.popleft(), prediction


def evaluate(
    model: SegCLIP,
    dataset: SegmentationDataset,
    protocol: Protocol,
    *,
    batch_size: int = 32,
    on_error: Literal["stop", "skip"] = "stop",
    progress: bool = False,
    checkpoint: str | Path | None = None,
    resampling: Resampling | None = None,
) -> Result:
    """Mean IoU, IoU of each class, accuracy and more of ``model`` over the whole data set.

    Args:
        model: where it is, with its whole (not partitioned) parameters. Put into evaluation mode meanwhile.
        dataset, protocol: what to score on, and how.
        batch_size: windows in one call of the encoder; does not change the result.
        on_error: stop at the first image that does not read, or leave it out and name it in the result.
        progress: show a bar on stderr.
        checkpoint: where the weights came from, for the record.
        resampling: of the confidence intervals; None for the usual.

    Raises:
        ValueError: protocol, data set and model do not fit, or no image could be read.
    """
    part = evaluate_part(
        model, dataset, protocol, batch_size=batch_size, on_error=on_error, progress=progress
    )
    return conclude([part], model, dataset, protocol, checkpoint=checkpoint, resampling=resampling)


def evaluate_part(
    model: SegCLIP,
    dataset: SegmentationDataset,
    protocol: Protocol,
    *,
    batch_size: int = 32,
    on_error: Literal["stop", "skip"] = "stop",
    progress: bool = False,
    after_image: Callable[[], None] | None = None,
) -> Part:
    """``evaluate`` on some of a data set's images (``dataset.pick``), to be joined with those of other processes.

    Args:
        after_image: called after each image.
    """
    device = next(model.parameters()).device
    tally = Tally(len(dataset.classes), device)
    skipped: dict[str, str] = {}
    digests: dict[str, str] = {}
    training = model.training
    model.eval()
    start = time.perf_counter()
    bar: AbstractContextManager[Progress | None] = progress_bar() if progress else nullcontext()
    try:
        with bar as shown:
            task = shown.add_task(f"evaluating {dataset.name}", total=len(dataset)) if shown else None
            pairs = predict_dataset(
                model, dataset, protocol, batch_size=batch_size, on_error=on_error, skipped=skipped,
                digests=digests,
            )  # fmt: skip
            for sample, prediction in pairs:
                truth_HW = torch.from_numpy(sample.label_HW).to(device, non_blocking=True)
                tally.add(sample.key, truth_HW, prediction.labels())
                if shown is not None and task is not None:
                    shown.advance(task)
                if after_image is not None:
                    after_image()
    finally:
        model.train(training)
    counts = tally.counts()
    seconds = time.perf_counter() - start
    return Part(counts, digests, skipped, seconds, str(device), batch_size)


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


def class_words(dataset: SegmentationDataset, protocol: Protocol) -> tuple[tuple[str, ...], ...]:
    """The phrases each class is asked by; none for a background that a threshold decides."""
    rule = protocol.rule(dataset.name)
    first = 1 if dataset.has_background else 0
    named = rule.phrases() or dataset.words[first:]
    return ((rule.background_words,) if first else ()) + named


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
