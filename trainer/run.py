"""``deepspeed trainer/run.py --config configs/NAME.yaml [section.key=value ...]``"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from segclip.trainer.config import RunConfig
    from segclip.trainer.distributed import Ranks

__all__ = ["build_parser", "main"]


def build_parser() -> argparse.ArgumentParser:
    """The options of ``trainer/run.py``."""
    parser = argparse.ArgumentParser(prog="trainer/run.py", description="Train SegCLIP.")
    parser.add_argument(
        "--config", required=True, help="YAML file of the run, for example configs/quickstart.yaml"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check configuration and data, print sizes, memory and time, and train nothing",
    )
    parser.add_argument(
        "--gpus",
        type=int,
        metavar="N",
        help="ranks that a dry run reckons with (default: those it is started with)",
    )
    parser.add_argument("--debug", action="store_true", help="show the stack trace of an error")
    parser.add_argument(
        "--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS
    )  # given by launchers
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="settings that replace those of the file"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Train as the configuration says.

    Exit code 0: the run is complete. 2: its user has to mend something. 69: another rank is lost. 75: asked to stop by
    a signal. 130: interrupted from the keyboard. After the last three the same command goes on.
    """
    arguments = build_parser().parse_args(argv)
    if arguments.local_rank is not None:
        os.environ.setdefault("LOCAL_RANK", str(arguments.local_rank))

    from segclip.console import UserError, one_line
    from segclip.rank_errors import GRACE_SECONDS, LOST, RankError, leave, lost_peer
    from segclip.trainer.stopping import ASKED, StopAsked

    rank = int(os.environ.get("RANK", "0"))
    started = False
    try:
        from segclip.trainer.config import load_run_config

        config = load_run_config(arguments.config, arguments.overrides)
        if arguments.dry_run:
            if rank == 0:
                _print_plan(config, arguments.gpus or int(os.environ.get("WORLD_SIZE", "1")))
            return

        from segclip.trainer.distributed import start
        from segclip.trainer.loop import train

        ranks = start(config.model_dump_json(), lost_after=config.train.lost_after)
        started = True
        train(config, ranks)
    except KeyboardInterrupt:
        if rank == 0:
            _tell("interrupted: the same command goes on after the last checkpoint")
        leave(130)
    except StopAsked as error:
        if rank == 0:
            _tell(f"{error}: a checkpoint is saved, and the same command goes on with it")
        leave(ASKED)
    except (ValueError, OSError, UserError) as error:
        if arguments.debug:
            raise
        # Before the ranks are joined, an error is the same on all of them.
        reports = error.is_reporter if isinstance(error, RankError) else started or rank == 0
        if reports:
            where = f"[rank {rank}] " if started and not isinstance(error, RankError) else ""
            _tell(f"{where}error: {one_line(error)}")
        else:
            time.sleep(GRACE_SECONDS)
        leave(2)
    except (RuntimeError, MemoryError) as error:
        if _out_of_memory(error) and not arguments.debug:
            _tell(f"[rank {rank}] error: {_what_needs_less(error)}")
            leave(2)
        if arguments.debug or not lost_peer(error):
            raise
        # The rank that failed has said why; this one only waited for it.
        _tell(f"[rank {rank}] stopped: another rank has ended")
        leave(LOST)
    _finish(ranks)


def _print_plan(config: RunConfig, processes: int) -> None:
    from segclip.trainer.dry_run import describe

    rows = describe(config, processes)
    width = max(len(name) for name, _ in rows)
    print(f"{config.name}: nothing is trained (--dry-run)")
    for name, value in rows:
        print(f"  {name:<{width}}  {value}")


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _what_needs_less(error: Exception) -> str:
    """Of an error of ``_out_of_memory``: its words, and the remedies."""
    from segclip.console import words_of
    from segclip.trainer.memory import REMEDIES

    return (
        f"out of memory: {words_of(error, 300)}\nWhat needs less, in the order of what it costs:\n"
        + "".join(f"  {remedy}\n" for remedy in REMEDIES)
        + "segclip-doctor memory tells what takes how much"
    )


def _out_of_memory(error: Exception) -> bool:
    """Of a GPU, or of the host: there torch's allocator says so in words alone."""
    import torch

    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return known or "you tried to allocate" in str(error)


def _finish(ranks: Ranks) -> None:
    import torch.distributed as dist

    dist.barrier()  # nobody leaves while others listen to it
    if ranks.watch is not None:
        ranks.watch.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
