"""Score an exported model at the end of a run and record the result with it."""

from __future__ import annotations

from pathlib import Path

import torch

from segclip.eval.datasets import open_dataset
from segclip.eval.evaluate import evaluate
from segclip.eval.pictures import write_pictures
from segclip.eval.protocol import load_protocol
from segclip.eval.report import summary_line
from segclip.eval.weights import load_model
from segclip.trainer.config import EvaluationConfig
from segclip.trainer.tracking import Tracker

__all__ = ["check_evaluation", "score", "score_entry"]


def check_evaluation(config: EvaluationConfig) -> None:
    """Open data set and protocol, so that a run does not find out at its end that they are missing.

    Raises:
        ValueError: unknown data set or protocol, or files missing.
    """
    if config.dataset is None:
        return
    if config.data_root is None:
        raise ValueError(
            f"evaluation.dataset is {config.dataset!r}, so evaluation.data_root must name its folder"
        )
    load_protocol(config.protocol).rule(open_dataset(config.dataset, config.data_root).name)


def score(
    config: EvaluationConfig,
    export: Path,
    folder: Path,
    step: int,
    tracker: Tracker | None,
    device: torch.device,
) -> float:
    """Mean IoU of ``export`` on ``device``: printed, written to ``folder`` with pictures, recorded in MLflow."""
    assert config.dataset is not None
    assert config.data_root is not None
    protocol = load_protocol(config.protocol)
    dataset = open_dataset(config.dataset, config.data_root)
    loaded = load_model(export, device)
    result = evaluate(loaded.model, dataset, protocol, checkpoint=export)
    result.write(folder / "result.json")
    write_pictures(folder, loaded.model, dataset, protocol, result)
    print(f"{dataset.name}, protocol {protocol.name}: {summary_line(result)}", flush=True)
    if tracker is not None:
        classes = {f"iou/{each.name}": each.iou for each in result.classes if each.iou is not None}
        tracker.metrics({"miou": result.miou, "pixel_accuracy": result.accuracy, **classes}, step)
        tracker.artifact(folder, "evaluation")
    return result.miou


def score_entry(config: EvaluationConfig, miou: float) -> dict[str, str | float | None]:
    """A score as the model card of an export lists it; of a protocol's file, the name alone."""
    return {"dataset": config.dataset, "protocol": Path(config.protocol).name, "miou": miou}
