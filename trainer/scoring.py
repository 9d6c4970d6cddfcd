"""Scoring: of the network while it trains, on some images, and of the finished export, on all. All ranks share it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from segclip.eval.conclude import Part, conclude
from segclip.eval.datasets.dataset import SegmentationDataset, open_dataset
from segclip.eval.evaluate import evaluate_part
from segclip.eval.protocol import Protocol, load_protocol
from segclip.eval.reports.outputs import write_outputs
from segclip.eval.reports.pictures import spread
from segclip.eval.reports.terminal import summary_line
from segclip.eval.result import Result
from segclip.eval.weights import load_model
from segclip.models.config import ModelConfig
from segclip.models.segclip import SegCLIP
from segclip.trainer.config import EvaluationConfig
from segclip.trainer.distributed import Ranks, agreed, gathered, on_first, patient_group
from segclip.trainer.tracking import Tracker

__all__ = ["check_evaluation", "plain_copy", "score_entry", "score_export", "score_training"]


def check_evaluation(config: EvaluationConfig) -> None:
    """Open data set and protocol, so that a run does not find out at its end that they are missing.

    Raises:
        ValueError: unknown data set or protocol, or files missing.
    """
    if config.dataset is None:
        if config.every:
            raise ValueError(
                f"evaluation.every is {config.every}, so evaluation.dataset must name what to score on; or leave it 0"
            )
        return
    if config.data_root is None:
        raise ValueError(
            f"evaluation.dataset is {config.dataset!r}, so evaluation.data_root must name its folder"
        )
    load_protocol(config.protocol).rule(open_dataset(config.dataset, config.data_root).name)


def score_training(
    config: EvaluationConfig,
    engine: Any,
    model_config: ModelConfig,
    step: int,
    tracker: Tracker | None,
    ranks: Ranks,
) -> float:
    """Mean IoU of the network as it is after ``step``, on ``config.images`` images. Called by every rank.

    The ranks share the images; those that load batches go on meanwhile. Recorded in MLflow as ``evaluation/miou``.
    """
    begin = time.perf_counter()
    dataset, protocol = _opened(config)
    dataset = dataset.pick(spread(len(dataset), config.images))
    result = _shared(plain_copy(engine, model_config, ranks.device), dataset, protocol, ranks)
    if ranks.is_first:
        seconds = time.perf_counter() - begin
        print(f"step {step}: {summary_line(result)}, {seconds:.1f} s", flush=True)
    if tracker is not None:
        tracker.metrics({"evaluation/miou": result.miou, "evaluation/pixel_accuracy": result.accuracy}, step)
        classes = {f"iou/{each.name}": each.iou for each in result.classes if each.iou is not None}
        tracker.evaluation(f"{dataset.name}, {result.images} images", {"miou": result.miou, **classes}, step)
    return result.miou


def score_export(
    config: EvaluationConfig,
    export: Path,
    folder: Path,
    step: int,
    tracker: Tracker | None,
    ranks: Ranks,
) -> float:
    """Mean IoU of ``export``: printed, written to ``folder`` with pictures, recorded in MLflow; called by all ranks."""
    dataset, protocol = _opened(config)
    model = agreed(ranks, lambda: load_model(export, ranks.device)).model
    result = _shared(model, dataset, protocol, ranks, checkpoint=export)

    def write() -> None:
        write_outputs(folder, model, dataset, protocol, result)
        print(f"{dataset.name}, protocol {protocol.name}: {summary_line(result)}", flush=True)

    on_first(ranks, write)
    if tracker is not None:
        classes = {f"iou/{each.name}": each.iou for each in result.classes if each.iou is not None}
        tracker.metrics({"miou": result.miou, "pixel_accuracy": result.accuracy, **classes}, step)
        tracker.artifact(folder, "evaluation")
        tracker.evaluation(f"{dataset.name}, all images", {"miou": result.miou, **classes}, step)
    return result.miou


def plain_copy(engine: Any, config: ModelConfig, device: torch.device) -> SegCLIP:
    """The network of an engine with whole float32 parameters, which any rank may use alone. Called by every rank.

    Under ZeRO-3 each parameter is gathered once and let go again; elsewhere it is copied.
    """
    import deepspeed

    copy = SegCLIP(config, load_init=False).to(device)
    targets = dict(copy.named_parameters())
    with torch.no_grad():
        for name, parameter in engine.module.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
                # The engine trains scalars as tensors of one element.
                targets[name].copy_(parameter.detach().reshape(targets[name].shape))
    return copy.eval()


def score_entry(config: EvaluationConfig, miou: float) -> dict[str, str | float | None]:
    """A score as the model card of an export lists it; of a protocol's file, the name alone."""
    return {"dataset": config.dataset, "protocol": Path(config.protocol).name, "miou": miou}


def _opened(config: EvaluationConfig) -> tuple[SegmentationDataset, Protocol]:
    assert config.dataset is not None
    assert config.data_root is not None
    return open_dataset(config.dataset, config.data_root), load_protocol(config.protocol)


def _shared(
    model: SegCLIP,
    dataset: SegmentationDataset,
    protocol: Protocol,
    ranks: Ranks,
    checkpoint: Path | None = None,
) -> Result:
    """The same result on every rank, of images that the ranks have shared out."""
    own = dataset.pick(range(ranks.rank, len(dataset), ranks.world_size))

    def score() -> Part | None:
        return evaluate_part(model, own, protocol) if len(own) else None

    group = patient_group()
    parts = gathered(agreed(ranks, score, group), group)
    dist.destroy_process_group(group)
    return conclude(
        [each for each in parts if each is not None], model, dataset, protocol, checkpoint=checkpoint
    )
