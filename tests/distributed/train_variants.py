"""Trains the small network several times in one group of processes: each argument is ``folder:override,override``."""

from __future__ import annotations

import sys

from segclip.trainer.config import load_run_config
from segclip.trainer.distributed import start
from segclip.trainer.loop import train

if __name__ == "__main__":
    arguments = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
    ranks = start()
    for variant in arguments[1:]:
        folder, _, overrides = variant.partition("::")
        config = load_run_config(arguments[0], [f"run_dir={folder}", *filter(None, overrides.split("::"))])
        train(config, ranks)
