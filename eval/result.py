"""A score with all that is needed to believe and repeat it, and its file: ``docs/evaluation-results.md`` explains each
number.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from segclip.eval.counts import ImageCounts, read_counts
from segclip.eval.datasets.check import DatasetCheck

__all__ = [
    "FORMAT",
    "ClassResult",
    "CountsFile",
    "ImageResult",
    "Interval",
    "Intervals",
    "Result",
    "ThresholdPoint",
    "ThresholdStudy",
    "VocabularyStudy",
    "VocabularyVariant",
]

FORMAT = 2
"""Of ``result.json``. 1 had no number, intervals or counts of images."""


@dataclass(frozen=True)
class _Record:
    """What can be written as JSON; a field that it does not know is refused when it is read."""

    __pydantic_config__ = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Interval(_Record):
    """Bounds of a confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Intervals(_Record):
    """Confidence intervals by the bootstrap over images; see ``segclip.eval.bootstrap``.

    Attributes:
        level: 0.95 for 95 %.
        draws: resamplings of the images.
        seed: of the draws.
        miou, accuracy, mean_class_accuracy, boundary_iou, coverage: of the figures of these
            names; None where the figure is.
    """

    level: float
    draws: int
    seed: int
    miou: Interval
    accuracy: Interval
    mean_class_accuracy: Interval | None
    boundary_iou: Interval | None
    coverage: Interval | None


@dataclass(frozen=True)
class ClassResult(_Record):
    """One class: shares are None where the class has no pixel to divide by.

    Attributes:
        name: as the data set shows it.
        words: the phrases it was asked by; none for a background that a threshold decides.
        iou, accuracy: intersection over union; part of its pixels that was found.
        iou_interval: of ``iou``.
        boundary_iou: see ``segclip.eval.boundary``.
        true_pixels, predicted_pixels: among those that count.
    """

    name: str
    words: tuple[str, ...]
    iou: float | None
    iou_interval: Interval | None
    accuracy: float | None
    boundary_iou: float | None
    true_pixels: int
    predicted_pixels: int


@dataclass(frozen=True)
class ImageResult(_Record):
    """One image: mean IoU over the classes that are in it or were predicted in it."""

    key: str
    miou: float | None
    accuracy: float | None


@dataclass(frozen=True)
class ThresholdPoint(_Record):
    """What one background threshold scores."""

    threshold: float
    miou: float


@dataclass(frozen=True)
class ThresholdStudy(_Record):
    """Background thresholds beside the protocol's. None of this goes into the main figures.

    Attributes:
        fixed: the protocol's, on the images of this result: the main figure again.
        tuned: the best one of ``tune_curve``, on the images of this result; None if no split was given to tune on.
        tune_split, tune_images: what it was tuned on.
        oracle: the best one of ``curve``: chosen by looking at the truth it is scored on, so a bound, not a score.
        curve: all thresholds that were tried, on the images of this result.
        tune_curve: the same on those it was tuned on.
    """

    fixed: ThresholdPoint
    tuned: ThresholdPoint | None
    tune_split: str | None
    tune_images: int
    oracle: ThresholdPoint
    curve: tuple[ThresholdPoint, ...]
    tune_curve: tuple[ThresholdPoint, ...]


@dataclass(frozen=True)
class VocabularyVariant(_Record):
    """The score under other words.

    Attributes:
        name: ``synonyms 1``, ``synonyms 2``, ..., ``distractors``.
        miou: mean IoU over the data set's classes; pixels given to a distractor are wrong.
        replaced: the words that were asked instead, by class.
        added: distractors that were asked besides.
        taken: part of the labelled pixels that a distractor got.
    """

    name: str
    miou: float
    replaced: dict[str, str]
    added: tuple[str, ...]
    taken: float


@dataclass(frozen=True)
class VocabularyStudy(_Record):
    """How much the score hangs on the words.

    Attributes:
        source: name or file of the words, and their SHA-256.
        miou: the main figure, for comparison.
        variants: the same images under other words.
    """

    source: str
    source_sha256: str
    miou: float
    variants: tuple[VocabularyVariant, ...]


@dataclass(frozen=True)
class CountsFile(_Record):
    """The file with the counts of each image that lies beside the result."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Result(_Record):
    """A score with all that is needed to believe and repeat it. Every field but the last can be written as JSON.

    Attributes:
        format: version of these fields.
        dataset, split: what was scored on.
        has_background: the first class means "none of the named ones".
        miou, accuracy, mean_class_accuracy: over all images together.
        boundary_iou: mean over the classes; None if no class has a boundary.
        coverage: part of the pixels of named classes that was given a named class; None without such pixels.
        classes_found, classes_present: classes of which a pixel was found, and of which there are pixels.
        intervals: None for less than two images, or if none were asked for.
        classes: one entry a label value.
        images, pixels: that were scored.
        skipped: images that could not be read, a line each: key and reason.
        confusion: pixels by true and predicted class.
        per_image: sorted as the data set is.
        protocol, protocol_sha256: all of it, and its hash.
        weights_sha256: hash of all parameters, whatever file they lay in.
        checkpoint: where they lay.
        data_sha256: hash of the names and bytes of all image and label files that were scored, in the data set's order.
        dataset_check: number and names of the images that were to be scored, and whether that is the whole split.
        thresholds, vocabulary: studies beside the main figures, if they were asked for.
        command: that printed it.
        ranks, device, batch_size: where it ran; no figure depends on these.
        seconds, images_per_second: how fast.
        versions: of the packages, and the commit of the code where it is known.
        counts: the file of each image's counts, once written.
        image_counts: what is in it.
    """

    format: int
    dataset: str
    split: str
    has_background: bool
    miou: float
    accuracy: float
    mean_class_accuracy: float | None
    boundary_iou: float | None
    coverage: float | None
    classes_found: int
    classes_present: int
    intervals: Intervals | None
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
    data_sha256: str
    dataset_check: DatasetCheck
    thresholds: ThresholdStudy | None
    vocabulary: VocabularyStudy | None
    command: str | None
    ranks: int
    device: str
    batch_size: int
    seconds: float
    images_per_second: float
    versions: dict[str, str]
    counts: CountsFile | None = None
    image_counts: Any = field(default=None, repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """Plain containers, ready for JSON."""
        return {
            each.name: _plain(getattr(self, each.name))
            for each in dataclasses.fields(self)
            if each.name != "image_counts"
        }

    def write(self, path: str | Path) -> Path:
        """Write as JSON, with the counts of each image in a file beside it that the JSON names; folders are made.

        Counts of an earlier result in the same file are removed.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        written = self
        if self.image_counts is not None:
            name, digest = self.image_counts.write(path.parent, path.stem)
            written = dataclasses.replace(self, counts=CountsFile(name, digest))
        draft = path.with_name(f".{path.name}.writing")
        draft.write_text(json.dumps(written.as_dict(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(draft, path)
        for other in path.parent.glob(f"{path.stem}-counts-*.npz"):
            if written.counts is not None and other.name != written.counts.name:
                other.unlink()
        return path

    @staticmethod
    def read(path: str | Path) -> Result:
        """Read what ``write`` wrote; ``load_counts`` gets the counts of each image.

        Raises:
            ValueError: no such file, no result, or one of another format; says which.
        """
        path = Path(path)
        if path.is_dir():
            path = path / "result.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(f"no result at {path}: give a result.json of segclip-eval") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not valid JSON ({error})") from error
        if not isinstance(content, dict) or "miou" not in content:
            raise ValueError(f"{path} is no result of segclip-eval")
        version = content.get("format", 1)
        if version != FORMAT:
            older = "evaluate again" if isinstance(version, int) and version < FORMAT else "update segclip"
            raise ValueError(
                f"{path} is a result of format {version!r}; this version reads format {FORMAT}: {older}"
            )
        content.pop("image_counts", None)
        try:
            result = _ADAPTER.validate_python(content)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise ValueError(f"{path} is no sound result: field {place!r}: {first['msg']}") from None
        size = len(result.classes)
        if len(result.confusion) != size or any(len(row) != size for row in result.confusion):
            raise ValueError(f"{path} is no sound result: field 'confusion' is not {size} x {size}")
        return result

    def load_counts(self, path: str | Path) -> ImageCounts:
        """The counts of each image of a result that was read from ``path``.

        Raises:
            ValueError: there are none, or they are not those of this result.
        """
        if isinstance(self.image_counts, ImageCounts):
            return self.image_counts
        path = Path(path)
        path = path / "result.json" if path.is_dir() else path
        if self.counts is None:
            raise ValueError(f"{path} names no file with the counts of each image: evaluate again")
        if Path(self.counts.name).name != self.counts.name:
            raise ValueError(f"{path} names counts of images in another folder: {self.counts.name!r}")
        counts = read_counts(path.parent / self.counts.name, self.counts.sha256)
        if counts.confusion().tolist() != [list(row) for row in self.confusion]:
            raise ValueError(f"the counts of images in {self.counts.name} do not add up to {path}")
        return counts


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return value


_ADAPTER: TypeAdapter[Result] = TypeAdapter(Result)
