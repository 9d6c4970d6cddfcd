"""Two ranks of an evaluation, of which the second fails while the first works on: ``failing_rank.py HOW``."""

from __future__ import annotations

import os
import signal
import sys
import time

from segclip.eval.ranks import Ranks, on_ranks


def work(ranks: Ranks) -> int:
    def share() -> None:
        if ranks.rank == 0:
            # Its images take a minute, unless it looks how the others fare; when one is killed, it is done by then.
            for _ in range(1 if sys.argv[1] == "killed" else 1200):
                ranks.look()
                time.sleep(0.05)
        elif sys.argv[1] == "user":
            raise ValueError("image b.jpg does not decode")
        elif sys.argv[1] == "fault":
            raise KeyError("a fault of ours")
        else:
            os.kill(os.getpid(), signal.SIGKILL)

    ranks.agreed(share)
    return 0


on_ranks(work, "cpu")
