"""Processes of a run: start-up, who is who, and agreeing on errors before anyone waits for anyone."""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from segclip.console import UserError, one_line
from segclip.heap import keep_freed_memory
from segclip.rank_errors import RankError, raise_first
from segclip.rendezvous import Place, free_port
from segclip.trainer.watch import Watch

__all__ = ["Ranks", "agreed", "broadcast", "gathered", "on_first", "patient_group", "prepare_builds", "start"]

Value = TypeVar("Value")
# In a collective of a step.
COLLECTIVE_WAIT = datetime.timedelta(minutes=10)
# For work of one rank that takes as long as it takes, such as scoring on a large data set.
LONGEST_WAIT = datetime.timedelta(days=7)


@dataclass(frozen=True)
class Ranks:
    """Place of this process among the processes of the run."""

    rank: int
    world_size: int
    device: torch.device
    watch: Watch | None = None

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def start(config: str = "", lost_after: float = 0.0) -> Ranks:
    """Join the process group that ``deepspeed`` or ``torchrun`` describes in the environment.

    Without a launcher the run has one process. NCCL on CUDA, gloo on CPU.

    Args:
        config: the configuration as text, which must be the same on all ranks.
        lost_after: seconds without a sign of life after which a rank counts as lost, from here on, see
            ``segclip.trainer.watch``; 0 for as long as it takes.

    Raises:
        RankError: a rank does not come, or its software or configuration is another.
    """
    prepare_builds()
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    for name, value in alone.items():
        os.environ.setdefault(name, value)
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = str(free_port())
    place = Place.told()
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", place.local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    else:
        place.share_cores()
    try:
        store = place.meet(config)
    except UserError as error:
        # Each host says so once: what one can see is not what the other can.
        raise RankError(str(error), is_reporter=place.local_rank == 0) from error
    watch = Watch(place.rank, place.world_size, lost_after)
    backend = "nccl" if on_gpu else "gloo"
    dist.init_process_group(
        backend,
        store=store,
        rank=place.rank,
        world_size=place.world_size,
        timeout=COLLECTIVE_WAIT,
        device_id=device if on_gpu else None,
    )

    import deepspeed  # several seconds, and not needed to refuse a misspelt configuration

    deepspeed.init_distributed(dist_backend=backend, timeout=COLLECTIVE_WAIT, verbose=False)
    if not on_gpu:
        _drop_buffer_names()
        keep_freed_memory()
    return Ranks(place.rank, place.world_size, device, watch)


def prepare_builds() -> None:
    """Let what DeepSpeed compiles on first use (CPU collectives, CPU Adam) be found and kept by this environment."""
    # One folder per environment: two environments that share the default one overwrite each other's builds.
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
    # It needs ninja, which may be in this environment alone; and another version of it would compile all anew.
    binaries = str(Path(sys.executable).parent)
    if os.environ.get("PATH", "").split(os.pathsep)[0] != binaries:
        os.environ["PATH"] = os.pathsep.join([binaries, os.environ.get("PATH", "")])


def agreed(ranks: Ranks, work: Callable[[], Value], group: Any = None) -> Value:
    """Do ``work`` on every rank; if it fails anywhere with a user's error, raise that error everywhere.

    Without this, the ranks that succeeded would wait in their next collective for the one that failed.

    Args:
        ranks: this process among all.
        work: what to do.
        group: through which they tell each other, if not through that of the run.

    Raises:
        RankError: with the message of the lowest failing rank.
    """
    result: Value | None = None
    caught: Exception | None = None
    try:
        result = work()
    except (ValueError, OSError, UserError) as error:
        caught = error
    raise_first(gathered(None if caught is None else one_line(caught), group), ranks.rank, caught)
    return result  # type: ignore[return-value]


def broadcast(value: Any) -> Any:
    """The value of rank 0, on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gathered(value: Value, group: Any = None) -> list[Value]:
    """The values of all ranks in their order, on every rank; through ``group`` if not through that of the run."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=group)
    return values


def patient_group() -> Any:
    """All ranks once more, on the CPU, for work that takes as long as it takes: past the time limit of a step's
    collectives, and beside them."""
    return dist.new_group(backend="gloo", timeout=LONGEST_WAIT)


def on_first(ranks: Ranks, work: Callable[[], None]) -> None:
    """Do ``work`` on the first rank while the others wait, in a ``patient_group``.

    Raises:
        RankError: ``work`` failed with a user's error, raised on all ranks. Any other error is raised on the first rank
            alone; when that ends, the others find their connection to it closed.
    """
    group = patient_group()
    caught: Exception | None = None
    if ranks.is_first:
        try:
            work()
        except (ValueError, OSError, UserError) as error:
            caught = error
    problem: list[str | None] = [None if caught is None else one_line(caught)]
    dist.broadcast_object_list(problem, src=0, group=group)
    dist.destroy_process_group(group)
    if problem[0] is not None:
        raise RankError(problem[0], is_reporter=ranks.is_first) from caught


def _drop_buffer_names() -> None:
    """Let the buffers of DeepSpeed's CPU collectives (66 MiB a rank) go when their processes do.

    DeepSpeed leaves them in /dev/shm, and a later run on the same port would find them. All ranks have mapped them
    when they are past the barrier; from then on nobody needs their names.
    """
    dist.barrier()
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    name = f"deepspeed_allreduce_buffer_{os.getuid()}_{address}_{port}_{dist.get_rank()}"
    Path("/dev/shm", name).unlink(missing_ok=True)
