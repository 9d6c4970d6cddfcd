"""A whole evaluation as the command line asks for it: by one process or several, with its studies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch

from segclip.eval import thresholds as threshold_study
from segclip.eval import vocabulary as word_study
from segclip.eval.bootstrap import Resampling
from segclip.eval.conclude import Part, conclude
from segclip.eval.datasets.dataset import SegmentationDataset
from segclip.eval.evaluate import evaluate_part
from segclip.eval.protocol import Protocol
from segclip.eval.ranks import Ranks
from segclip.eval.result import Result, ThresholdPoint
from segclip.eval.vocabulary import Vocabulary
from segclip.models.segclip import SegCLIP

__all__ = ["Task", "score"]

Value = TypeVar("Value")


@dataclass(frozen=True)
class Task:
    """What is to be scored, and what besides.

    Attributes:
        dataset, protocol: on what, and how.
        batch_size: windows in one call of the encoder.
        on_error: stop at the first image that does not read, or leave it out and name it.
        resampling: of the confidence intervals.
        thresholds: try other background thresholds.
        tune: images to choose a threshold on.
        vocabulary: other words to try; None for no such study.
        checkpoint, command: for the record.

    Raises:
        ValueError: there is no threshold to study, nothing in the vocabulary applies, or ``tune`` has the same images.
    """

    dataset: SegmentationDataset
    protocol: Protocol
    batch_size: int = 32
    on_error: Literal["stop", "skip"] = "stop"
    resampling: Resampling = field(default_factory=Resampling)
    thresholds: bool = False
    tune: SegmentationDataset | None = None
    vocabulary: Vocabulary | None = None
    checkpoint: Path | None = None
    command: str | None = None

    def __post_init__(self) -> None:
        self.grid()
        self.variants()
        if self.tune is not None:
            if not self.thresholds:
                raise ValueError("a split to tune on goes with a threshold study: give --thresholds as well")
            both = set(self.tune.image_paths) & set(self.dataset.image_paths)
            if both:
                raise ValueError(
                    f"{len(both)} images of split {self.tune.split!r} are scored as well (first: {min(both).name}): "
                    "a threshold tuned on them would be an oracle; give another --tune-split"
                )

    def grid(self) -> tuple[float, ...]:
        """Background thresholds to try."""
        return threshold_study.threshold_grid(self.dataset, self.protocol) if self.thresholds else ()

    def variants(self) -> tuple[word_study.Variant, ...]:
        """Other words to try."""
        if self.vocabulary is None:
            return ()
        return word_study.variants(self.vocabulary, self.dataset, self.protocol)


def score(task: Task, model: SegCLIP, ranks: Ranks | None = None, *, progress: bool = False) -> Result:
    """Do it; each number is the same whatever the number of ranks.

    Args:
        task: what to do.
        model: on its device, the same on all ranks.
        ranks: among which the images are shared; None for this process alone.
        progress: show a bar on stderr, on the first rank.

    Raises:
        ValueError: an image does not read, or none does; of several ranks, ``RankError`` on all of them.
    """
    grid, variants = task.grid(), task.variants()

    def agreed(work: Callable[[], Value]) -> Value:
        return work() if ranks is None else ranks.agreed(work)

    def shared(
        dataset: SegmentationDataset, studied: tuple[word_study.Variant, ...]
    ) -> tuple[Part, list[Part]]:
        own = dataset if ranks is None else dataset.pick(ranks.own(len(dataset)))

        def work() -> Part:
            return evaluate_part(
                model,
                own,
                task.protocol,
                batch_size=task.batch_size,
                on_error=task.on_error,
                progress=progress and (ranks is None or ranks.is_first),
                thresholds=grid,
                variants=studied,
                after_image=None if ranks is None else ranks.look,
            )

        part = agreed(work)
        return part, [part] if ranks is None else ranks.gather(part)

    tune_curve: tuple[ThresholdPoint, ...] = ()
    tune_images = 0
    if task.tune is not None:  # first, so that a split with nothing to tune on costs no evaluation
        tune_parts = shared(task.tune, ())[1]
        tune_images = sum(len(part.counts.keys) for part in tune_parts)
        tune_curve = agreed(partial(_curve, task.tune, grid, tune_parts))
    own, parts = shared(task.dataset, variants)

    result = agreed(
        lambda: conclude(
            parts,
            model,
            task.dataset,
            task.protocol,
            checkpoint=task.checkpoint,
            resampling=task.resampling,
            command=task.command,
        )
    )
    if ranks is not None:
        _check_sum(ranks, own, result)
    if grid:
        fixed = task.protocol.rule(task.dataset.name).threshold
        assert fixed is not None
        study = threshold_study.study(
            fixed,
            _curve(task.dataset, grid, parts),
            tune_curve,
            tune_split=None if task.tune is None else task.tune.split,
            tune_images=tune_images,
        )
        result = replace(result, thresholds=study)
    if task.vocabulary is not None:
        confusions = [np.stack(each).sum(0) for each in zip(*(part.variants for part in parts), strict=True)]
        words = word_study.study(
            task.vocabulary, variants, confusions, len(task.dataset.classes), result.miou
        )
        result = replace(result, vocabulary=words)
    return result


def _check_sum(ranks: Ranks, own: Part, result: Result) -> None:
    """The ranks' own counts, summed on their devices, are those of the result."""
    total = ranks.sum(torch.from_numpy(own.counts.confusion())).tolist()
    if total != [list(row) for row in result.confusion]:
        raise RuntimeError("the counts of the ranks do not add up to the result")


def _curve(
    dataset: SegmentationDataset, grid: tuple[float, ...], parts: list[Part]
) -> tuple[ThresholdPoint, ...]:
    counts = np.stack([part.thresholds for part in parts if part.thresholds is not None]).sum(0)
    if not counts.sum():
        raise ValueError(f"no labelled pixel of split {dataset.split!r} of {dataset.name!r} could be scored")
    return threshold_study.curve(counts, grid)
