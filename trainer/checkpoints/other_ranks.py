"""A checkpoint of ZeRO stage 1, 2 or 3, loaded by another number of ranks than wrote it.

Its files are pieces whose borders depend on that number. The first rank joins them into one file for each parameter and
moment (DeepSpeed's universal checkpoint), in a folder beside the checkpoints that is removed once all ranks have loaded
it. DeepSpeed 0.19 leaves out a part, which is made up for here:

- what is not optimised: frozen parameters and buffers
- at stage 3, all groups but the first: each gets the first one's name, rates and weight decay
- at stage 3, one count of steps for each flat piece: all share one tensor, which each of them raises
- the device of that count, which torch's fused AdamW wants on the card

Known limit: at stages 1 and 2 each rank must hold a piece of each parameter group. That fails only where ranks are many
and a group is small; it is refused before anything is loaded.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from segclip.models.training_checkpoint import full_state
from segclip.trainer.checkpoints.reconfigured import settings_of
from segclip.trainer.distributed import Ranks, agreed, on_first

__all__ = ["check_stage", "count_pieces", "load_for_other_ranks", "remove_joined", "written_by_others"]

# Not the name of a checkpoint, so never taken for one.
JOINED = ".joined"
NOT_OPTIMISED = "not_optimised.safetensors"


def written_by_others(checkpoint: Path, world_size: int) -> bool:
    """Whether ``checkpoint`` is in pieces for another number of ranks. Without ZeRO there are none."""
    return count_pieces(checkpoint) not in (0, world_size)


def count_pieces(checkpoint: Path) -> int:
    """Ranks that wrote ``checkpoint``, or 0 if it is not in pieces."""
    return len(list(checkpoint.glob("*zero_pp_rank_*_optim_states.pt")))


def load_for_other_ranks(engine: Any, checkpoint: Path, ranks: Ranks) -> None:
    """Join the pieces of ``checkpoint`` and load this rank's share; called by every rank.

    Args:
        engine: built for a checkpoint of other ranks.
        checkpoint: its files have been looked through (``check_pickles``): DeepSpeed unpickles them.

    Raises:
        RankError: no room on the disk, or too many ranks for the smallest parameter group.
    """
    begin = time.perf_counter()
    stage = engine.zero_optimization_stage()
    agreed(ranks, lambda: _check_pieces(engine, stage, ranks))
    root = checkpoint.parent / JOINED
    joined = root / checkpoint.name
    optimised = {name for name, parameter in engine.module.named_parameters() if parameter.requires_grad}

    def join() -> None:
        print(f"{checkpoint} was written by {count_pieces(checkpoint)} ranks: joining its pieces", flush=True)
        joined.mkdir(parents=True)
        _join(checkpoint, joined, stage, optimised)

    on_first(ranks, join)

    def load() -> None:
        settings = settings_of(engine)
        engine.load_checkpoint(str(root), tag=joined.name)
        for group, own in zip(engine.optimizer.param_groups, settings, strict=True):
            group.update(own)
        _restore_counts(engine)
        _load_the_rest(engine, joined, stage)

    agreed(ranks, load)
    dist.barrier()
    if ranks.is_first:
        remove_joined(checkpoint.parent)
        print(f"joined and loaded for {ranks.world_size} in {time.perf_counter() - begin:.1f} s", flush=True)


def remove_joined(root: Path) -> None:
    """Remove what a load that was interrupted has left in a folder of checkpoints."""
    shutil.rmtree(root / JOINED, ignore_errors=True)


def check_stage(checkpoint: Path, stage: int) -> None:
    """Refuse another way of cutting into pieces: DeepSpeed fails on it or, from stage 0, forgets all moments.

    Raises:
        ValueError: ``checkpoint`` cannot be loaded at ZeRO stage ``stage``.
    """
    if count_pieces(checkpoint) == 0:
        allowed = [0]
    elif (checkpoint / "zero_pp_rank_0_mp_rank_00_model_states.pt").is_file():
        allowed = [3]
    else:
        allowed = [1, 2]
    if stage not in allowed:
        stages = " or ".join(map(str, allowed))
        raise ValueError(
            f"zero.stage is {stage}, but {checkpoint} was written at stage {stages}: set zero.stage={stages} to "
            "resume, or give another run_dir to start anew"
        )


def _check_pieces(engine: Any, stage: int, ranks: Ranks) -> None:
    if stage == 3:
        return
    for group, parameters in zip(engine.optimizer.param_groups, engine.optimizer.bit16_groups, strict=True):
        if all(parameter._hp_mapping is None for parameter in parameters):
            numbers = sum(parameter.numel() for parameter in parameters)
            raise ValueError(
                f"parameter group {group['name']!r} has {numbers} numbers, too few for each of {ranks.world_size} "
                "ranks to hold some, and DeepSpeed cannot share out a checkpoint of another number of ranks then; "
                "start fewer ranks, or as many as wrote the checkpoint"
            )


def _join(checkpoint: Path, joined: Path, stage: int, optimised: set[str]) -> None:
    from deepspeed.checkpoint import ds_to_universal

    # In this process: its own processes would be forks of one that has threads, a GPU and connections.
    arguments = argparse.Namespace(
        input_folder=str(checkpoint),
        output_folder=str(joined),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    # Bars of progress over thousands of small files.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        ds_to_universal.main(arguments)
        whole = full_state(checkpoint, stage)
    rest = {name: value.contiguous() for name, value in whole.items() if name not in optimised}
    save_file(rest, joined / NOT_OPTIMISED)


def _restore_counts(engine: Any) -> None:
    inner = engine.optimizer.optimizer
    on_device = bool(inner.defaults.get("fused") or inner.defaults.get("capturable"))
    for parameter, state in inner.state.items():
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].to(parameter.device if on_device else "cpu", copy=True)


def _load_the_rest(engine: Any, joined: Path, stage: int) -> None:
    """Frozen parameters and buffers."""
    from deepspeed.runtime.zero.partition_parameters import GatheredParameters

    rest = load_file(joined / NOT_OPTIMISED)
    own: dict[str, Tensor] = dict(engine.module.named_parameters()) | dict(engine.module.named_buffers())
    for name, value in rest.items():
        target = own[name]
        partitioned = [target] if stage == 3 and hasattr(target, "ds_id") else []
        with GatheredParameters(partitioned, modifier_rank=0, enabled=bool(partitioned)), torch.no_grad():
            if not partitioned or dist.get_rank() == 0:
                target.copy_(value.reshape(target.shape))
