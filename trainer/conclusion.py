"""What follows the last step of a run: export, score, ``summary.json``."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from segclip.models.export_folder import add_to_card
from segclip.trainer.checkpoints.folder import find_latest
from segclip.trainer.config import RunConfig
from segclip.trainer.distributed import Ranks, on_first
from segclip.trainer.export import export_checkpoint
from segclip.trainer.progress import summary_table
from segclip.trainer.scoring import score_entry, score_export
from segclip.trainer.tracking import Tracker

__all__ = ["conclude"]


def conclude(config: RunConfig, ranks: Ranks, speed: dict[str, float], tracker: Tracker | None) -> None:
    """Export the last checkpoint, score it if the configuration names a data set, and write and print the summary.

    Args:
        speed: what the summary says of it besides.
    """
    run_dir = Path(config.run_dir)
    final = find_latest(run_dir)
    assert final is not None
    folder = run_dir / "export"

    def write_export() -> None:
        print(f"exported {export_checkpoint(final, config, folder)}", flush=True)

    on_first(ranks, write_export)
    summary: dict[str, Any] = {"step": config.train.steps, **speed}
    if config.evaluation.dataset is not None:
        begin = time.perf_counter()
        miou = score_export(
            config.evaluation, folder, run_dir / "evaluation", config.train.steps, tracker, ranks
        )
        summary |= {"miou": miou, "seconds_scoring": time.perf_counter() - begin}

    def write_summary() -> None:
        if "miou" in summary:
            add_to_card(folder, {"scores": [score_entry(config.evaluation, summary["miou"])]})
        if tracker is not None:
            summary["mlflow_run_id"] = tracker.wait_for_run_id(config.tracking.flush_seconds)
        (run_dir / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        print(summary_table(summary, run_dir), flush=True)

    on_first(ranks, write_summary)
