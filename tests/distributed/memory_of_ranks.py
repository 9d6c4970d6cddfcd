"""Writes what a rank predicts and what it holds: arguments are a config, an output file, and sets of overrides."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from segclip.trainer.config import load_run_config
from segclip.trainer.distributed import start
from segclip.trainer.memory import predict
from segclip.trainer.memory_measured import measure

if __name__ == "__main__":
    arguments = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
    ranks = start()
    rows = {}
    for variant in arguments[2:]:
        config = load_run_config(arguments[0], variant.split("::"))
        measured, _ = measure(config, ranks)
        expected = predict(config, ranks.world_size, config.train.precision, "cpu")
        rows[variant] = [dataclasses.asdict(expected), dataclasses.asdict(measured)]
    if ranks.rank == ranks.world_size - 1:
        Path(arguments[1]).write_text(json.dumps(rows))
