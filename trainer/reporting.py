"""Figures of the steps, every ``train.log_every`` of them: on the console, in ``metrics.jsonl`` and in MLflow."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from segclip.trainer.config import RunConfig
from segclip.trainer.data_counts import DataCounts, check_data, count_data, data_rates
from segclip.trainer.distributed import Ranks
from segclip.trainer.line_file import LineFile
from segclip.trainer.nonfinite import step_health
from segclip.trainer.progress import ProgressLine
from segclip.trainer.start_up import Ready
from segclip.trainer.step import StepResult
from segclip.trainer.step_metrics import peak_memory, step_metrics
from segclip.trainer.timing import StepTimer
from segclip.trainer.tracking import Tracker
from segclip.trainer.utilisation import Utilisation
from segclip.trainer.watch import doing

__all__ = ["Reporter"]


class Reporter:
    """Adds up from report to report; every rank has one, and calls it as the others do.

    Attributes:
        timer: of the parts of a step.
        waited: seconds that this rank has waited for batches since the last report.
    """

    def __init__(self, config: RunConfig, ranks: Ranks, run: Ready, tracker: Tracker | None) -> None:
        self._config, self._ranks, self._run, self._tracker = config, ranks, run, tracker
        self._line = ProgressLine(run.first_step, config.train.steps, config.train.global_batch)
        self._rows = LineFile(Path(config.run_dir) / "metrics.jsonl")
        self._utilisation = Utilisation(config, ranks)
        self._before = self._counted = DataCounts.of(run.state)
        self._reported = run.first_step
        self.timer = StepTimer(run.engine.device)
        self.waited = 0.0

    def data_counts(self) -> DataCounts:
        """What has happened to the data since the run began, on all ranks."""
        return count_data(self._run.stream, self._before)

    @contextmanager
    def pause(self, what: str) -> Iterator[None]:
        """Leave out of the rates the time of something that is no step."""
        begin = time.perf_counter()
        doing(what)
        yield
        self._line.pause(time.perf_counter() - begin)

    def report(self, step: int, result: StepResult, rates: dict[str, float], cost: dict[str, float]) -> None:
        """Report a step that is the first, the last or a multiple of ``train.log_every``.

        Args:
            step: the one just made.
            result: what it told.
            rates: learning rates by group.
            cost: metrics of the last checkpoint.

        Raises:
            RankError: more of the data is bad than the configuration allows.
        """
        train = self._config.train
        if step % train.log_every and step not in (self._run.first_step + 1, train.steps):
            return
        metrics = step_metrics(result) | {f"lr/{name}": rate for name, rate in rates.items()}
        metrics |= self._line.rates(step) | peak_memory(self._ranks)
        metrics |= self._utilisation.metrics(metrics["samples_per_second"])
        last, self._counted = self._counted, self.data_counts()
        metrics |= self._counted.metrics()
        metrics |= data_rates(self._run.stream, last, self._counted, self._line.seconds, self.waited)
        metrics |= step_health(self._run.engine) | self.timer.take(step - self._reported) | cost
        self._reported, self.waited = step, 0.0
        if self._ranks.is_first:
            print(self._line.text(step, metrics), flush=True)
            # JSON has no number for a gradient that is not finite.
            known = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
            self._rows.append(json.dumps({"step": step, **known}, allow_nan=False).encode() + b"\n")
        if self._tracker is not None:
            self._tracker.metrics(metrics, step)
        check_data(self._config.data, self._run.stream, self._counted, self._ranks)
