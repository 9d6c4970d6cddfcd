"""Trains the small network several times in one group of processes: each argument is ``folder::override::override``.

Beside each run stands how often a block of features went around the ring of ranks.
"""

from __future__ import annotations

import sys
from pathlib import Path

from segclip.kernels import contrastive_ranks
from segclip.trainer.config import load_run_config
from segclip.trainer.distributed import start
from segclip.trainer.loop import train

if __name__ == "__main__":
    arguments = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
    ranks = start()
    passes: list[int] = []
    pass_on = contrastive_ranks._pass_on
    contrastive_ranks._pass_on = lambda tensor, group, tag: passes.append(tag) or pass_on(tensor, group, tag)
    for variant in arguments[1:]:
        folder, _, overrides = variant.partition("::")
        config = load_run_config(arguments[0], [f"run_dir={folder}", *filter(None, overrides.split("::"))])
        passes.clear()
        train(config, ranks)
        if ranks.is_first:
            Path(folder, "ring_passes").write_text(str(len(passes)), encoding="utf-8")
