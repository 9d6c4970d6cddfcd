"""One of two ranks that meet errors: ``python errors_of_ranks.py RANK FILE`` prints what it saw as JSON lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import torch
import torch.distributed as dist

from segclip.rank_errors import RankError, lost_peer
from segclip.trainer.distributed import Ranks, agreed, on_first

if __name__ == "__main__":
    rank = int(sys.argv[1])
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
    ranks = Ranks(rank, 2, torch.device("cpu"))

    def fail_with(error: Exception) -> None:
        raise error

    def on_the_second(error: Exception) -> None:
        if not ranks.is_first:
            raise error

    def tell(name: str, attempt: Callable[[], object]) -> None:
        try:
            seen: object = attempt()
        except RankError as error:
            seen = [str(error), error.is_reporter, type(error.__cause__).__name__]
        print(json.dumps({name: seen}), flush=True)

    done: list[int] = []
    on_first(ranks, lambda: done.append(rank))
    tell("work", lambda: done)
    tell("first", lambda: on_first(ranks, lambda: fail_with(ValueError("steps is 0: give more"))))
    tell("second", lambda: agreed(ranks, lambda: on_the_second(FileNotFoundError(2, "no file", "a.tar"))))
    tell("both", lambda: agreed(ranks, lambda: fail_with(ValueError("no data"))))
    # The ranks are still in step.
    total = torch.tensor([rank + 1])
    dist.all_reduce(total)
    tell("sum", total.item)
    # A fault of ours is raised on the first rank alone; the other one can tell that it has lost it.
    try:
        on_first(ranks, lambda: fail_with(KeyError("a fault")))
    except RuntimeError as error:
        lost = lost_peer(error)
        tell("lost", lambda: lost)
