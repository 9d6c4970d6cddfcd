"""A checkpoint loaded into an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from segclip.trainer.checkpoints.other_ranks import check_stage, load_for_other_ranks, remove_joined
from segclip.trainer.checkpoints.train_state import TrainState, read_state
from segclip.trainer.distributed import Ranks, agreed

__all__ = ["load_checkpoint"]


def load_checkpoint(engine: Any, folder: Path, ranks: Ranks) -> TrainState:
    """Load model, optimiser and state from an intact checkpoint into ``engine``; called by every rank.

    Raises:
        RankError: it does not go with this ZeRO stage or number of ranks.
    """
    state = agreed(ranks, lambda: read_state(folder))
    agreed(ranks, lambda: check_stage(folder, engine.zero_optimization_stage()))
    if ranks.is_first:
        remove_joined(folder.parent)
    if engine.load_universal_checkpoint():
        load_for_other_ranks(engine, folder, ranks)
    else:
        agreed(ranks, lambda: engine.load_checkpoint(str(folder.parent), tag=folder.name))
    return state
