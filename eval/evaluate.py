"""Scoring a model on a data set under a protocol."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.progress import Progress
from torch import Tensor

from segclip.console import progress as progress_bar
from segclip.eval.datasets import Sample, SegmentationDataset
from segclip.eval.inference import ClassScorer, Prediction, predict, resize, scorer_words
from segclip.eval.metrics import class_accuracy, class_iou, confusion_matrix, mean_iou, pixel_accuracy
from segclip.eval.protocol import Geometry, Protocol
from segclip.eval.text import TextBank
from segclip.eval.weights import weights_sha256
from segclip.models.segclip import SegCLIP

__all__ = [
    "ClassResult",
    "ImageResult",
    "Part",
    "Result",
    "build_scorer",
    "conclude",
    "evaluate",
    "evaluate_part",
    "predict_dataset",
]

_READERS = 2
_READ_AHEAD = 64


@dataclass(frozen=True)
class ClassResult:
    """One class: shares are None where the class has no pixel to divide by."""

    name: str
    iou: float | None
    accuracy: float | None
    true_pixels: int
    predicted_pixels: int


@dataclass(frozen=True)
class ImageResult:
    """One image: mean IoU over the classes that are in it or were predicted in it."""

    key: str
    miou: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Result:
    """A score with all that is needed to believe and repeat it. Every field can be written as JSON."""

    dataset: str
    miou: float
    accuracy: float
    mean_class_accuracy: float
    classes: tuple[ClassResult, ...]
    images: int
    pixels: int
    skipped: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    per_image: tuple[ImageResult, ...]
    protocol: dict[str, Any]
    protocol_sha256: str
    weights_sha256: str
    checkpoint: str | None
    device: str
    seconds: float
    images_per_second: float
    versions: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Plain containers, ready for JSON."""
        return asdict(self)

    def write(self, path: str | Path) -> Path:
        """Write as JSON; folders are made."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.as_dict(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        return path


@dataclass(frozen=True)
class Part:
    """What one process found on its images; ``conclude`` makes a result of all parts.

    Attributes:
        confusion_CC: int64, on the CPU: pixels by true and by predicted class.
        per_image: the images that were scored.
        skipped: those that were not, with the reason.
        seconds: time it took.
        device: where it ran.
    """

    confusion_CC: Tensor
    per_image: tuple[ImageResult, ...]
    skipped: tuple[str, ...]
    seconds: float
    device: str


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
    skipped: list[str]
    waiting: deque[Sample]

    def _one(self, index: int) -> tuple[Sample, Tensor]:
        sample = self.dataset[index]
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
                        self.skipped.append(f"{self.dataset.keys[index]}: {error}")
                        continue
                    self.waiting.append(sample)
                    yield image_3hw, (sample.label_HW.shape[0], sample.label_HW.shape[1])
            finally:
                for _, future in futures:
                    future.cancel()


def predict_dataset(
    model: SegCLIP,
    dataset: SegmentationDataset,
    protocol: Protocol,
    *,
    batch_size: int = 32,
    on_error: Literal["stop", "skip"] = "stop",
    skipped: list[str] | None = None,
) -> Iterator[tuple[Sample, Prediction]]:
    """Each sample with its prediction, in order.

    Args:
        model: its mode is left as it is; use evaluation mode.
        dataset, protocol: what to predict, and how.
        batch_size: windows in one call of the encoder; does not change the result.
        on_error: ``stop`` raises on the first image that does not read; ``skip`` goes on.
        skipped: gets one line for each image left out.
    """
    geometry = protocol.geometry(model.config)
    scorer = build_scorer(model, dataset, protocol)
    reader = _Read(dataset, geometry, on_error, skipped if skipped is not None else [], deque())
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
) -> Result:
    """Mean IoU, IoU of each class and accuracy of ``model`` over the whole data set.

    Args:
        model: where it is, with its whole (not partitioned) parameters. Put into evaluation mode meanwhile.
        dataset, protocol: what to score on, and how.
        batch_size: windows in one call of the encoder; does not change the result.
        on_error: stop at the first image that does not read, or leave it out and name it in the result.
        progress: show a bar on stderr.
        checkpoint: where the weights came from, for the record.

    Raises:
        ValueError: protocol, data set and model do not fit, or no image could be read.
    """
    part = evaluate_part(
        model, dataset, protocol, batch_size=batch_size, on_error=on_error, progress=progress
    )
    return conclude([part], model, dataset, protocol, checkpoint=checkpoint)


def evaluate_part(
    model: SegCLIP,
    dataset: SegmentationDataset,
    protocol: Protocol,
    *,
    batch_size: int = 32,
    on_error: Literal["stop", "skip"] = "stop",
    progress: bool = False,
) -> Part:
    """``evaluate`` on some of a data set's images (``dataset.pick``), to be joined with those of other processes."""
    classes = len(dataset.classes)
    device = next(model.parameters()).device
    confusion_CC = torch.zeros(classes, classes, dtype=torch.int64, device=device)
    skipped: list[str] = []
    per_image: list[ImageResult] = []
    training = model.training
    model.eval()
    start = time.perf_counter()
    bar: AbstractContextManager[Progress | None] = progress_bar() if progress else nullcontext()
    try:
        with bar as shown:
            task = shown.add_task(f"evaluating {dataset.name}", total=len(dataset)) if shown else None
            pairs = predict_dataset(
                model, dataset, protocol, batch_size=batch_size, on_error=on_error, skipped=skipped
            )
            for sample, prediction in pairs:
                truth = torch.from_numpy(sample.label_HW).to(device)
                counts_CC = confusion_matrix(truth, prediction.labels(), classes)
                confusion_CC += counts_CC
                per_image.append(
                    ImageResult(sample.key, _number(mean_iou(counts_CC)), _number(pixel_accuracy(counts_CC)))
                )
                if shown is not None and task is not None:
                    shown.advance(task)
    finally:
        model.train(training)
    seconds = time.perf_counter() - start
    return Part(confusion_CC.cpu(), tuple(per_image), tuple(skipped), seconds, str(device))


def conclude(
    parts: Sequence[Part],
    model: SegCLIP,
    dataset: SegmentationDataset,
    protocol: Protocol,
    *,
    checkpoint: str | Path | None = None,
) -> Result:
    """The result of parts that together cover ``dataset``; each number is that of one process on all of it.

    Args:
        parts: by ``evaluate_part`` of the same model and protocol, each image in one of them.
        model, dataset, protocol: what was scored.
        checkpoint: where the weights came from, for the record.

    Raises:
        ValueError: no image could be read.
    """
    confusion_CC = torch.stack([part.confusion_CC for part in parts]).sum(0)
    skipped = [line for part in parts for line in part.skipped]
    places = {key: number for number, key in enumerate(dataset.keys)}
    per_image = sorted((row for part in parts for row in part.per_image), key=lambda row: places[row.key])
    if not int(confusion_CC.sum()):
        why = f"; first: {skipped[0]}" if skipped else ""
        raise ValueError(f"no labelled pixel of data set {dataset.name!r} could be scored{why}")
    seconds = max(part.seconds for part in parts)
    return Result(
        dataset=dataset.name,
        miou=mean_iou(confusion_CC),
        accuracy=pixel_accuracy(confusion_CC),
        mean_class_accuracy=float(class_accuracy(confusion_CC).nanmean()),
        classes=_class_results(dataset.classes, confusion_CC),
        images=len(per_image),
        pixels=int(confusion_CC.sum()),
        skipped=tuple(skipped),
        confusion=tuple(tuple(row) for row in confusion_CC.tolist()),
        per_image=tuple(per_image),
        protocol=protocol.model_dump(mode="json"),
        protocol_sha256=protocol.sha256,
        weights_sha256=weights_sha256(model),
        checkpoint=str(checkpoint) if checkpoint is not None else None,
        device=", ".join(sorted({part.device for part in parts})),
        seconds=round(seconds, 3),
        images_per_second=round(len(per_image) / seconds, 2),
        versions={"torch": torch.__version__},
    )


def _class_results(names: tuple[str, ...], confusion_CC: Tensor) -> tuple[ClassResult, ...]:
    iou_C, accuracy_C = class_iou(confusion_CC).tolist(), class_accuracy(confusion_CC).tolist()
    return tuple(
        ClassResult(name, _number(iou), _number(accuracy), int(true), int(predicted))
        for name, iou, accuracy, true, predicted in zip(
            names, iou_C, accuracy_C, confusion_CC.sum(1).tolist(), confusion_CC.sum(0).tolist(), strict=True
        )
    )


def _number(value: float) -> float | None:
    """None for NaN, which JSON does not know."""
    return None if value != value else value
