"""The training loop: step, report, look, score, save."""

from __future__ import annotations

import time
from pathlib import Path

import torch.distributed as dist

from segclip.code_version import git_commit
from segclip.console import UserError
from segclip.rank_errors import RankError
from segclip.trainer.checkpoints.train_state import Best, TrainState
from segclip.trainer.checkpoints.upload import Uploads
from segclip.trainer.checkpoints.writer import CheckpointWriter
from segclip.trainer.conclusion import conclude
from segclip.trainer.config import RunConfig, as_yaml, flatten, save_run_config
from segclip.trainer.distributed import Ranks, agreed, broadcast, on_first
from segclip.trainer.engine import set_learning_rates
from segclip.trainer.faults import fail_at
from segclip.trainer.insight import look
from segclip.trainer.nonfinite import SkippedSteps
from segclip.trainer.prefetch import on_device, pinned
from segclip.trainer.reporting import Reporter
from segclip.trainer.scoring import score_training
from segclip.trainer.start_up import Ready, announce, start_up
from segclip.trainer.step import train_step
from segclip.trainer.stopping import StopAsked, Stopping
from segclip.trainer.tracking import Tracker

__all__ = ["train"]


def train(config: RunConfig, ranks: Ranks) -> None:
    """Train to ``config.train.steps``, continuing from the newest intact checkpoint of the run folder if there is one.

    Raises:
        RankError: something a user can mend, on any rank, or too many steps in a row without a finite gradient; raised
            on all of them.
        StopAsked: a signal asked to stop; a checkpoint is saved.
    """
    stopping = Stopping(ranks)
    run = start_up(config, ranks)
    tracker = agreed(ranks, lambda: _begin_records(config, run.state) if ranks.is_first else None)
    announce(config, ranks, run)
    uploads = Uploads(config)
    writer = CheckpointWriter(run.engine, config.checkpoint, config.run_dir, as_yaml(config), ranks, uploads)
    try:
        begin = time.perf_counter()
        _run_steps(config, ranks, run, tracker, stopping, writer)
        seconds = time.perf_counter() - begin
        samples = (config.train.steps - run.first_step) * config.train.global_batch
        # A run that was complete already has no speed.
        speed = {"seconds": seconds, "samples_per_second": samples / seconds} if samples else {}
        conclude(config, ranks, speed, tracker)
        if config.checkpoint.upload is not None:
            on_first(ranks, uploads.finish)
    except (RankError, StopAsked) as error:
        # On all ranks. The checkpoint that is being written shall be whole, and what waits be sent; and nobody leaves
        # before, since launchers end the others when one has left.
        writer.wait(last=True)
        status = "KILLED" if isinstance(error, StopAsked) else "FAILED"
        on_first(ranks, lambda: _finish(tracker, status))
        if config.checkpoint.upload is not None:
            on_first(ranks, uploads.stop)
        raise
    except BaseException:
        _finish(tracker, "FAILED")
        raise
    _finish(tracker, "FINISHED")
    stopping.close()


def _finish(tracker: Tracker | None, status: str) -> None:
    if tracker is not None:
        tracker.finish(status)


def _begin_records(config: RunConfig, state: TrainState | None) -> Tracker | None:
    """The configuration in the run's folder, and in MLflow if the run is recorded there."""
    path = Path(config.run_dir) / "config.yaml"
    save_run_config(config, path)
    if not config.tracking.enabled:
        return None
    tracker = Tracker(config.tracking, config.run_dir, config.name, state.mlflow_run_id if state else None)
    tracker.parameters({**flatten(config.model_dump(mode="json")), "world_size": dist.get_world_size()})
    tracker.artifact(path)
    return tracker


def _run_steps(
    config: RunConfig,
    ranks: Ranks,
    run: Ready,
    tracker: Tracker | None,
    stopping: Stopping,
    writer: CheckpointWriter,
) -> None:
    engine, stream, micro_batch = run.engine, run.stream, run.micro_batch
    steps, first_step = config.train.steps, run.first_step
    reporter = Reporter(config, ranks, run, tracker)
    skips = SkippedSteps(config.train.max_skipped, config.run_dir, ranks, writer.wait)
    best = run.state.best if run.state is not None else None
    # What is computed piece by piece need not lie on the device as a whole.
    provide = on_device if micro_batch == stream.batch_size else pinned
    batches = provide(stream, engine.device)

    def save(step: int) -> None:
        run_id = broadcast(tracker.run_id if tracker is not None else None)
        now = reporter.data_counts()
        batch_size, commit = config.train.global_batch, git_commit()
        reached = TrainState(
            step, config.seed, batch_size, run_id, commit, run.data, **now.as_state(), best=best
        )
        writer.save(reached)

    saved = first_step
    for step in range(first_step + 1, steps + 1):
        rates = set_learning_rates(engine, config.schedule.factor(step, steps))
        begin, counts = time.perf_counter(), stream.counts.copy()
        fail_at("before step", step)
        try:
            batch = stopping.next(batches)
        except UserError:
            stream.counts = counts  # the batch that some rank has got is no step's
            if saved < step - 1:
                save(step - 1)
            raise
        reporter.waited += time.perf_counter() - begin
        result = train_step(engine, batch, config.seed, config.loss, micro_batch, reporter.timer)
        skips.look(result.gradient_norm, step)
        reporter.report(step, result, rates, writer.cost.metrics())
        if config.train.look_every and step % config.train.look_every == 0:
            with reporter.pause("taking a closer look"):
                look(config, engine, batch, step, tracker, ranks)
        if config.evaluation.every and step % config.evaluation.every == 0 and step < steps:
            with reporter.pause("scoring"):
                miou = score_training(config.evaluation, engine, config.model, step, tracker, ranks)
            best = Best(step, miou) if best is None or miou > best.miou else best
        is_best = config.checkpoint.keep_best and best is not None and best.step == step
        if step % config.checkpoint.every == 0 or step == steps or is_best:
            save(step)
            saved = step
    writer.wait(last=True)
    stopping.finish()
