"""An evaluation on several processes, started by ``torchrun`` or ``deepspeed``: each takes some of the images.

The processes meet over gloo, and over NCCL beside it where they have GPUs. They talk three times: to agree that all has
been found, to hand the network round, and at the end. In between each works alone; one that fails says so where the
others look once a second, so that nobody scores on for hours after a broken image elsewhere.
"""

from __future__ import annotations

import datetime
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from segclip.console import EXIT_USER_ERROR, UserError, one_line
from segclip.eval.weights import LoadedModel, load_model, pick_device
from segclip.heap import keep_freed_memory
from segclip.models.segclip import SegCLIP
from segclip.rank_errors import GRACE_SECONDS, LOST, RankError, leave, lost_peer, raise_first
from segclip.rendezvous import Place

__all__ = ["Ranks", "join", "on_ranks"]

Value = TypeVar("Value")

_LONGEST = datetime.timedelta(days=7)  # shares of the images take as long as they take
_LOOK_SECONDS = 1.0
_FAILED = "failed"


class PartnerLost(RuntimeError):
    """Another rank has ended or failed, and said why itself."""


@dataclass
class Ranks:
    """This process among those of the evaluation.

    Attributes:
        rank, world_size: which of how many.
        device: its own.
        store: where a rank leaves word that it has failed.
    """

    rank: int
    world_size: int
    device: torch.device
    store: Any
    _looked: float = 0.0

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def own(self, total: int) -> range:
        """Numbers of this rank's images out of ``total``; none if there are fewer images than ranks."""
        return range(self.rank, total, self.world_size)

    def look(self) -> None:
        """Raise ``PartnerLost`` if another rank has failed; asks once a second at most."""
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        try:
            failed = self.store.check([_FAILED])
        except (dist.DistError, RuntimeError) as error:
            raise PartnerLost("the first rank has ended") from error
        if failed:
            raise PartnerLost("another rank has failed")

    def agreed(self, work: Callable[[], Value]) -> Value:
        """Do ``work`` on every rank; if it fails anywhere with a user's error, raise that error everywhere.

        Raises:
            RankError: with the message of the lowest failing rank.
        """
        result: Value | None = None
        caught: Exception | None = None
        try:
            result = work()
        except PartnerLost as error:
            caught = error
        except (ValueError, OSError, UserError) as error:
            caught = error
            self.store.set(_FAILED, str(self.rank))
        except BaseException:
            self.store.set(_FAILED, str(self.rank))
            raise
        own = None if caught is None or isinstance(caught, PartnerLost) else one_line(caught)
        raise_first(self.gather(own), self.rank, caught)
        if caught is not None:
            raise caught
        return result  # type: ignore[return-value]

    def gather(self, value: Value) -> list[Value]:
        """The value of every rank, on every rank."""
        box: list[Any] = [None] * self.world_size
        dist.all_gather_object(box, value)
        return box

    def sum(self, counts: Tensor) -> Tensor:
        """Sum of integer counts over the ranks, on this rank's device."""
        counts = counts.to(self.device)
        dist.all_reduce(counts)
        return counts

    def share_model(self, path: Path) -> LoadedModel:
        """The network that the first rank finds at ``path``, on every rank's device. The others read no file.

        Raises:
            RankError: it cannot be loaded.
        """
        loaded = self.agreed(lambda: load_model(path) if self.is_first else None)
        box: list[Any] = [None if loaded is None else (loaded.model.config, loaded.path, loaded.card)]
        dist.broadcast_object_list(box, src=0)
        config, found, card = box[0]
        model = SegCLIP(config, load_init=False).eval() if loaded is None else loaded.model
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, src=0)
        return LoadedModel(model.to(self.device), found, card)


def join(device: str = "auto") -> Ranks:
    """Meet the other processes that the launcher has started.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``; each rank takes the GPU of its place on its host.

    Raises:
        UserError: a rank does not come, or its software is another.
        ValueError: the device cannot be had.
    """
    place = Place.told()
    own = _own_device(device, place.local_rank, place.local_world_size)
    if own.type == "cpu":
        place.share_cores()
        keep_freed_memory()
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    if "MASTER_PORT" not in os.environ:
        raise ValueError(
            f"WORLD_SIZE is {place.world_size} but MASTER_PORT is not set: start with torchrun or deepspeed, "
            "or unset WORLD_SIZE"
        )
    store = place.meet(" ".join(each for each in sys.argv if not each.startswith("--local")))
    on_gpu = own.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(own)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        store=store,
        rank=place.rank,
        world_size=place.world_size,
        timeout=_LONGEST,
        device_id=own if on_gpu else None,
    )
    return Ranks(place.rank, place.world_size, own, store)


def _own_device(name: str, local_rank: int, here: int) -> torch.device:
    if ":" in name:
        raise ValueError(
            f"--device {name} names one device, but {here} processes run on this host; say cuda, and each takes its own"
        )
    device = pick_device(name)
    if device.type == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"{here} processes on this host but only {torch.cuda.device_count()} GPUs: "
                "start as many processes as GPUs, or give --device cpu"
            )
        return torch.device("cuda", local_rank)
    return device


def on_ranks(work: Callable[[Ranks], int], device: str = "auto", *, debug: bool = False) -> NoReturn:
    """Join, do ``work`` and end the process.

    The exit code is the largest of what ``work`` returned. A user's error is one line from the rank it happened on, and
    exit code 2; 69 for those who have lost another rank.
    """
    rank = int(os.environ.get("RANK", "0"))
    try:
        try:
            ranks = join(device)
        except (ValueError, UserError) as error:
            # Each host says so once: what one can see is not what the other can.
            reports = int(os.environ.get("LOCAL_RANK", "0")) == 0
            raise RankError(one_line(error), reports) from error
        code = max(ranks.gather(work(ranks)))  # nobody leaves while others listen to it
        dist.destroy_process_group()
    except KeyboardInterrupt:
        if rank == 0:
            print("interrupted", file=sys.stderr)
        leave(130)
    except RankError as error:
        if debug:
            raise
        if error.is_reporter:
            print(f"error: {one_line(error)}", file=sys.stderr, flush=True)
        else:
            time.sleep(GRACE_SECONDS)
        leave(EXIT_USER_ERROR)
    except (RuntimeError, PartnerLost) as error:
        if debug or not (isinstance(error, (PartnerLost, dist.DistError)) or lost_peer(error)):
            _print_trace()
            leave(1)
        print(f"[rank {rank}] stopped: another rank has ended", file=sys.stderr, flush=True)
        leave(LOST)
    except BaseException:
        _print_trace()
        leave(1)
    leave(code)


def _print_trace() -> None:
    import traceback

    traceback.print_exc()
