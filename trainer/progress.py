"""The line that rank 0 prints while it trains."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["ProgressLine", "duration", "summary_table"]


class ProgressLine:
    """Rates since the last report, and the time that remains at the rate of the whole run so far."""

    def __init__(self, first_step: int, steps: int, global_batch: int) -> None:
        self._first, self._steps, self._global_batch = first_step, steps, global_batch
        self._start = self._last_time = time.perf_counter()
        self._last_step = first_step
        self.seconds = 0.0
        """Between the last two calls of ``rates``."""

    def rates(self, step: int) -> dict[str, float]:
        """Throughput since the last call."""
        now = time.perf_counter()
        self.seconds = now - self._last_time
        seconds = self.seconds / max(1, step - self._last_step)
        self._last_time, self._last_step = now, step
        return {"step_seconds": seconds, "samples_per_second": self._global_batch / seconds}

    def pause(self, seconds: float) -> None:
        """Leave out some time that no step was made in."""
        self._start += seconds
        self._last_time += seconds

    def text(self, step: int, metrics: dict[str, float]) -> str:
        """One line about ``step``."""
        done = step - self._first
        left = (time.perf_counter() - self._start) / done * (self._steps - step)
        parts = " ".join(
            f"{name.removeprefix('loss/')} {value:.4f}"
            for name, value in metrics.items()
            if name.startswith("loss/") and name != "loss/total"
        )
        return (
            f"step {step:>{len(str(self._steps))}}/{self._steps}  loss {metrics['loss/total']:.4f} ({parts})  "
            f"gradient {metrics['gradient_norm']:.2f}  {metrics['samples_per_second']:,.0f} samples/s  "
            f"{_data(metrics)}{duration(left)} left"
        )


def _data(metrics: dict[str, float]) -> str:
    """How the data fare: what is read and waited for, and what went wrong so far, if anything did."""
    parts = [f"data {metrics['data/mb_per_second']:.1f} MB/s, waited {metrics['data/wait_share']:.0%}"]
    for what, prefix in (("skipped samples", "data/skips/"), ("retries", "data/store/retries/")):
        count = sum(value for name, value in metrics.items() if name.startswith(prefix))
        if count:
            parts.append(f"{what} {count:,.0f}")
    return ", ".join(parts) + "  "


def summary_table(summary: Mapping[str, Any], run_dir: Path) -> str:
    """What a run has come to, and where it lies; ``summary`` is that of ``summary.json``."""
    rows = [("steps", f"{summary['step']}")]
    if "seconds" in summary:
        rows += [
            ("time", duration(summary["seconds"])),
            ("speed", f"{summary['samples_per_second']:,.1f} samples/s"),
        ]
    if "miou" in summary:
        rows.append(("mIoU", f"{summary['miou']:.4f}"))
    rows.append(("export", f"{run_dir / 'export'}"))
    if summary.get("mlflow_run_id"):
        rows.append(("MLflow run", summary["mlflow_run_id"]))
    return "\n".join(["run complete", *(f"  {name:<10}  {value}" for name, value in rows)])


def duration(seconds: float) -> str:
    """``75`` -> ``1m15s``; hours when there are any."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{whole % 60:02d}s"
