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

import torch
from rich.progress import Progress
from torch import Tensor

from segclip.console import progress as progress_bar
from segclip.eval.bootstrap import Resampling
from segclip.eval.class_words import class_words
from segclip.eval.conclude import Part, conclude
from segclip.eval.counts import Tally
from segclip.eval.datasets.dataset import Sample, SegmentationDataset
from segclip.eval.inference import ClassScorer, Prediction, predict, scorer_words
from segclip.eval.protocol import Geometry, Protocol
from segclip.eval.result import Result
from segclip.eval.studies import StackedScorer, StudyTally
from segclip.eval.text import TextBank
from segclip.eval.vocabulary import Variant
from segclip.eval.windows import resize
from segclip.models.segclip import SegCLIP

__all__ = ["build_scorer", "evaluate", "evaluate_part", "predict_dataset", "scorer_from_phrases"]

_READERS = 2
_READ_AHEAD = 64  # images at most
_PIXELS_AHEAD = 2**25  # of them together: a pixel with its label takes 11 bytes


def build_scorer(
    model: SegCLIP,
    dataset: SegmentationDataset,
    protocol: Protocol,
    *,
    phrases: tuple[tuple[str, ...], ...] | None = None,
    bank: TextBank | None = None,
) -> ClassScorer:
    """The data set's words under the protocol, embedded by the model.

    Args:
        model, dataset, protocol: what is scored, and how.
        phrases: synonyms of each class, background left out, in the place of the protocol's.
        bank: embeddings that are there already.

    Raises:
        ValueError: protocol and data set do not go together, see ``class_words``; a word is too long for the model.
    """
    words = class_words(dataset, protocol)
    if phrases is None:
        phrases = words[int(dataset.has_background) :]
    rule = protocol.rule(dataset.name)
    bank = bank or TextBank(model, protocol.templates, protocol.template_averaging)
    return scorer_from_phrases(
        model,
        phrases,
        bank,
        protocol,
        dataset=dataset.name,
        threshold=rule.threshold,
        background_words=rule.background_words,
    )


def scorer_from_phrases(
    model: SegCLIP,
    phrases: tuple[tuple[str, ...], ...],
    bank: TextBank,
    protocol: Protocol,
    *,
    dataset: str | None = None,
    threshold: float | None = None,
    background_words: tuple[str, ...] = (),
) -> ClassScorer:
    """Scorer for one list of synonyms a class; background words are label 0, then the classes follow.

    Args:
        model, bank, protocol: see ``build_scorer``.
        phrases: of each class.
        dataset: whose scale and smallest share hold; None: the protocol's own scale.
        threshold: score below which something is background.
        background_words: phrases that stand for the background.
    """
    groups = (background_words, *phrases) if background_words else phrases
    words, labels = scorer_words(groups)
    text_NE = bank(words)
    one_each = labels == list(range(len(words)))
    logit_scale = protocol.scale(dataset)
    if logit_scale is None:
        with torch.no_grad():
            logit_scale = float(model.temperature())
    return ClassScorer(
        text_NE,
        logit_scale,
        rule=protocol.score,
        top_k=protocol.top_k,
        word_label_N=None if one_each else torch.tensor(labels, device=text_NE.device),
        threshold=threshold,
        background_words=bool(background_words),
        softmax_at=protocol.softmax_at,
        threshold_at=protocol.threshold_at,
        smallest_share=protocol.rule(dataset).smallest_share if dataset is not None else None,
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
        ahead = _READERS
        with ThreadPoolExecutor(_READERS) as pool:
            try:
                following = 0
                while futures or following < len(self.dataset):
                    while following < len(self.dataset) and len(futures) < ahead:
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
                    ahead = min(max(_PIXELS_AHEAD // sample.label_HW.size, _READERS), _READ_AHEAD)
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
    scorer: ClassScorer | StackedScorer | None = None,
) -> Iterator[tuple[Sample, Prediction]]:
    """Each sample with its prediction, in order.

    Args:
        model: its mode is left as it is; use evaluation mode.
        dataset, protocol: what to predict, and how.
        batch_size: windows in one call of the encoder; does not change the result.
        on_error: ``stop`` raises on the first image that does not read; ``skip`` goes on.
        skipped: gets the reason for each image left out, by its key.
        digests: gets the SHA-256 of the files of each image by its key; None: they are not hashed.
        scorer: of the data set's words under the protocol; None makes it.
    """
    geometry = protocol.geometry(model.config, dataset.name)
    scorer = scorer or build_scorer(model, dataset, protocol)
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
    thresholds: tuple[float, ...] = (),
    variants: Sequence[Variant] = (),
    after_image: Callable[[], None] | None = None,
) -> Part:
    """``evaluate`` on some of a data set's images (``dataset.pick``), to be joined with those of other processes.

    Args:
        model, dataset, protocol, batch_size, on_error, progress: as for ``evaluate``; there may be no image.
        thresholds: background thresholds to try in the same pass, see ``segclip.eval.thresholds``.
        variants: other words to try in the same pass, see ``segclip.eval.vocabulary``.
        after_image: called after each image.
    """
    device = next(model.parameters()).device
    skipped: dict[str, str] = {}
    digests: dict[str, str] = {}
    training = model.training
    model.eval()
    start = time.perf_counter()
    bar: AbstractContextManager[Progress | None] = progress_bar(unit="images") if progress else nullcontext()
    try:
        tally = Tally(len(dataset.classes), device)
        bank = TextBank(model, protocol.templates, protocol.template_averaging)
        main = build_scorer(model, dataset, protocol, bank=bank)
        others = [
            build_scorer(model, dataset, protocol, phrases=each.phrases, bank=bank) for each in variants
        ]
        stacked = StackedScorer(main, thresholds, tuple(others)) if thresholds or others else None
        studies = StudyTally(stacked) if stacked is not None else None
        with bar as shown:
            task = shown.add_task(f"evaluating {dataset.name}", total=len(dataset)) if shown else None
            pairs = predict_dataset(
                model, dataset, protocol, batch_size=batch_size, on_error=on_error, skipped=skipped,
                digests=digests, scorer=stacked or main,
            )  # fmt: skip
            for sample, prediction in pairs:
                truth_HW = torch.from_numpy(sample.label_HW).to(device, non_blocking=True)
                if studies is None:
                    found_HW = prediction.labels()
                else:
                    found_HW = studies.add(truth_HW, prediction)
                tally.add(sample.key, truth_HW, found_HW)
                if shown is not None and task is not None:
                    shown.advance(task)
                if after_image is not None:
                    after_image()
    finally:
        model.train(training)
    counts = tally.counts()
    seconds = time.perf_counter() - start
    return Part(
        counts, digests, skipped, seconds, str(device), batch_size,
        thresholds=None if studies is None else studies.thresholds(),
        variants=() if studies is None else studies.variants(),
    )  # fmt: skip
