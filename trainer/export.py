"""From a sharded training checkpoint to one folder that ``segclip.load`` opens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segclip.data_pipelines.shard_sets import ShardSet
from segclip.models.export_folder import export
from segclip.models.segclip import SegCLIP
from segclip.models.training_checkpoint import join_network
from segclip.trainer.checkpoints.train_state import TrainState, read_state
from segclip.trainer.config import RunConfig

__all__ = ["card_fields", "describe_data", "export_checkpoint", "load_training_checkpoint"]


def export_checkpoint(checkpoint: Path, config: RunConfig, folder: Path) -> Path:
    """Write ``folder`` (weights, configuration, model card) from the float32 weights of ``checkpoint``.

    Reads files only, so one process can do it while others wait.
    """
    return export(load_training_checkpoint(checkpoint, config), folder)


def load_training_checkpoint(checkpoint: Path, config: RunConfig) -> SegCLIP:
    """The network of a training checkpoint in float32, in evaluation mode, with what its model card shall say."""
    model = join_network(checkpoint, config.model, config.zero.stage)
    model.card = card_fields(config, read_state(checkpoint))
    return model


def card_fields(config: RunConfig, state: TrainState) -> dict[str, Any]:
    """What a model card says of a run. Places on the machine that trained are left out: cards are published."""
    recipe = config.model_dump(mode="json", exclude={"run_dir", "tracking", "checkpoint", "evaluation"})
    for place in (recipe["data"], *recipe["data"]["sources"]):
        place.pop("shards", None)
    recipe["model"] = config.model.for_others().model_dump(mode="json")
    return {
        "run": config.name,
        "protocol": Path(config.evaluation.protocol).name,
        "steps": state.step,
        "code": state.git_commit,
        "data": state.data,
        "recipe": recipe,
    }


def describe_data(sets: Sequence[ShardSet]) -> dict[str, Any]:
    """Name and size of each shard set and the SHA-256 of its manifest, which in turn holds that of every shard.

    Returns:
        ``name``, ``samples`` and ``manifest_sha256`` of a single set; of several, the list ``sets`` of these, each
        with its ``weight`` if they are mixed.
    """
    described: list[dict[str, Any]] = [
        {
            "name": each.name,
            "samples": each.manifest.samples,
            "manifest_sha256": each.manifest_sha256,
            **({} if each.weight is None else {"weight": each.weight}),
        }
        for each in sets
    ]
    return described[0] if len(described) == 1 else {"sets": described}
