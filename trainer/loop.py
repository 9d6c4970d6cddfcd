"""The training loop: start or resume, step, report, save, export, score."""

from __future__ import annotations

import json
import logging
import math
import resource
import subprocess
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml

from segclip.console import UserError
from segclip.data_pipelines.loader import BatchStream, build_loader
from segclip.models.checkpoint import add_to_card
from segclip.trainer.checkpoint import find_latest, load_checkpoint
from segclip.trainer.checkpoint_upload import Uploads, restored
from segclip.trainer.checkpoint_writer import CheckpointWriter
from segclip.trainer.config import RunConfig, flatten, save_run_config
from segclip.trainer.data_counts import DataCounts, check_data, count_data, data_rates
from segclip.trainer.distributed import RankError, Ranks, agreed, broadcast, on_first
from segclip.trainer.engine import build_engine, set_learning_rates
from segclip.trainer.export import describe_data, export_checkpoint
from segclip.trainer.faults import fail_at
from segclip.trainer.insight import look
from segclip.trainer.line_file import LineFile
from segclip.trainer.micro_batches import batch_sizes
from segclip.trainer.nonfinite import SkippedSteps, step_health
from segclip.trainer.other_ranks import written_by_others
from segclip.trainer.precision import resolve_precision
from segclip.trainer.prefetch import on_device, pinned
from segclip.trainer.progress import ProgressLine, summary_table
from segclip.trainer.reconfigured import keep_settings
from segclip.trainer.resuming import check_resumable, check_same_data, step_of
from segclip.trainer.run_lock import hold_run_folder
from segclip.trainer.safe_pickles import check_pickles
from segclip.trainer.scoring import check_evaluation, score_entry, score_export, score_training
from segclip.trainer.step import StepResult, train_step
from segclip.trainer.stopping import StopAsked, Stopping
from segclip.trainer.timing import StepTimer
from segclip.trainer.tracking import Tracker
from segclip.trainer.train_state import Best, TrainState, read_state
from segclip.trainer.utilisation import Utilisation
from segclip.trainer.watch import doing

__all__ = ["train"]

log = logging.getLogger(__name__)


def train(config: RunConfig, ranks: Ranks) -> None:
    """Train to ``config.train.steps``, continuing from the newest intact checkpoint of the run folder if there is one.

    Raises:
        RankError: something a user can mend, on any rank, or too many steps in a row without a finite gradient; raised
            on all of them.
        StopAsked: a signal asked to stop; a checkpoint is saved.
    """
    run_dir = Path(config.run_dir)
    config_yaml = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    stopping = Stopping(ranks)
    agreed(ranks, lambda: run_dir.mkdir(parents=True, exist_ok=True))
    agreed(ranks, lambda: hold_run_folder(run_dir) if ranks.is_first else None)
    latest = restored(config, ranks)
    changes = agreed(ranks, lambda: [] if latest is None else check_resumable(config, latest))
    agreed(ranks, lambda: check_evaluation(config.evaluation))
    _, micro_batch = agreed(
        ranks, lambda: batch_sizes(config.train.global_batch, ranks.world_size, config.train.micro_batch)
    )
    if ranks.device.type == "cpu":
        # Moments of parameters that receive next to no gradient decay into denormals, which are slow to compute with.
        torch.set_flush_denormal(True)
    stream = agreed(ranks, lambda: _open_data(config, ranks, 0 if latest is None else step_of(latest)))
    data = describe_data(stream.sets)
    if latest is not None:
        agreed(ranks, lambda: check_same_data(read_state(latest).data, data, latest))
        agreed(ranks, lambda: check_pickles(latest) if ranks.is_first else None)
    regroups = agreed(ranks, lambda: latest is not None and written_by_others(latest, ranks.world_size))
    engine = agreed(
        ranks, lambda: build_engine(config, ranks, resuming=latest is not None, other_ranks=regroups)
    )
    with keep_settings(engine):
        state = load_checkpoint(engine, latest, ranks) if latest is not None else None
    first_step = state.step if state is not None else 0

    tracker = agreed(ranks, lambda: _begin_records(config, state) if ranks.is_first else None)
    _announce(config, ranks, engine, latest, first_step, micro_batch, changes)

    uploads = Uploads(config)
    writer = CheckpointWriter(engine, config.checkpoint, run_dir, config_yaml, ranks, uploads)
    try:
        begin = time.perf_counter()
        _run_steps(config, ranks, engine, stream, state, tracker, data, micro_batch, stopping, writer)
        seconds = time.perf_counter() - begin
        samples = (config.train.steps - first_step) * config.train.global_batch
        # A run that was complete already has no speed.
        speed = {"seconds": seconds, "samples_per_second": samples / seconds} if samples else {}
        _conclude(config, ranks, speed, tracker)
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


def _conclude(config: RunConfig, ranks: Ranks, speed: dict[str, float], tracker: Tracker | None) -> None:
    """What follows the last step: export, score, ``summary.json``."""
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


def _open_data(config: RunConfig, ranks: Ranks, start_step: int) -> BatchStream:
    return build_loader(
        config.data,
        patch_size=config.model.patch_size,
        rank=ranks.rank,
        world_size=ranks.world_size,
        batch_size=config.train.global_batch // ranks.world_size,
        seed=config.seed,
        start_step=start_step,
    )


def _run_steps(
    config: RunConfig,
    ranks: Ranks,
    engine: Any,
    stream: BatchStream,
    state: TrainState | None,
    tracker: Tracker | None,
    data: dict[str, Any],
    micro_batch: int,
    stopping: Stopping,
    writer: CheckpointWriter,
) -> None:
    steps = config.train.steps
    first_step = state.step if state is not None else 0
    before = DataCounts.of(state)
    line = ProgressLine(first_step, steps, config.train.global_batch)
    rows = LineFile(Path(config.run_dir) / "metrics.jsonl")
    utilisation, timer = Utilisation(config, ranks), StepTimer(engine.device)
    skips = SkippedSteps(config.train.max_skipped, config.run_dir, ranks)
    counted, waited, reported = before, 0.0, first_step
    best = state.best if state is not None else None
    # What is computed piece by piece need not lie on the device as a whole.
    provide = on_device if micro_batch == stream.batch_size else pinned
    batches = provide(stream, engine.device)

    def save(step: int) -> None:
        run_id = broadcast(tracker.run_id if tracker is not None else None)
        now = count_data(stream, ranks, before)
        batch_size, commit = config.train.global_batch, git_commit()
        reached = TrainState(step, config.seed, batch_size, run_id, commit, data, **now.as_state(), best=best)
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
        waited += time.perf_counter() - begin
        result = train_step(engine, batch, config.seed, config.loss, micro_batch, timer)
        skips.look(result.gradient_norm, step)
        if step % config.train.log_every == 0 or step in (first_step + 1, steps):
            metrics = _reduced(result) | {f"lr/{name}": rate for name, rate in rates.items()}
            metrics |= line.rates(step) | _memory(ranks)
            metrics |= utilisation.metrics(metrics["samples_per_second"])
            last, counted = counted, count_data(stream, ranks, before)
            metrics |= counted.metrics() | data_rates(stream, ranks, last, counted, line.seconds, waited)
            metrics |= step_health(engine) | timer.take(step - reported) | writer.cost.metrics()
            reported = step
            waited = 0.0
            if ranks.is_first:
                print(line.text(step, metrics), flush=True)
                # JSON has no number for a gradient that is not finite.
                known = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
                rows.append(json.dumps({"step": step, **known}, allow_nan=False).encode() + b"\n")
            if tracker is not None:
                tracker.metrics(metrics, step)
            check_data(config.data, stream, counted, ranks)
        if config.train.look_every and step % config.train.look_every == 0:
            begin = time.perf_counter()
            doing("taking a closer look")
            look(config, engine, batch, step, tracker, ranks)
            line.pause(time.perf_counter() - begin)
        if config.evaluation.every and step % config.evaluation.every == 0 and step < steps:
            begin = time.perf_counter()
            doing("scoring")
            miou = score_training(config.evaluation, engine, config.model, step, tracker, ranks)
            improved = best is None or miou > best.miou
            best = Best(step, miou) if improved else best
            line.pause(time.perf_counter() - begin)
        is_best = config.checkpoint.keep_best and best is not None and best.step == step
        if step % config.checkpoint.every == 0 or step == steps or is_best:
            save(step)
            saved = step
    writer.wait(last=True)
    stopping.finish()


def _reduced(result: StepResult) -> dict[str, float]:
    """Losses as means over ranks, and the numbers that are equal on all of them."""
    names = sorted(result.losses)
    values = torch.cat(
        [
            torch.stack([result.losses[name].float() for name in names] + [result.centers.used]),
            result.centers.share_G,
        ]
    )
    dist.all_reduce(values)
    means = values.cpu() / dist.get_world_size()
    share_G = means[len(names) + 1 :]
    return dict(zip((f"loss/{name}" for name in names), means.tolist(), strict=False)) | {
        "centers/used": float(means[len(names)]),
        # 1 if all centers hold as many patches, 0 if one holds all.
        "centers/entropy": float(torch.special.entr(share_G).sum() / math.log(len(share_G)))
        if len(share_G) > 1
        else 1.0,
        "centers/dead": float((share_G == 0).sum()),
        "logit_scale": float(result.logit_scale),
        "gradient_norm": result.gradient_norm,
    }


def _memory(ranks: Ranks) -> dict[str, float]:
    """Largest memory so far, in GiB: of the card, or of this process on a CPU."""
    if ranks.device.type == "cuda":
        return {"memory/peak_gib": torch.cuda.max_memory_allocated(ranks.device) / 2**30}
    return {"memory/peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def _announce(
    config: RunConfig,
    ranks: Ranks,
    engine: Any,
    latest: Path | None,
    first_step: int,
    micro_batch: int,
    changes: list[str],
) -> None:
    if not ranks.is_first:
        return
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in engine.module.parameters())
    precision = resolve_precision(config.train.precision, ranks.device)
    local_batch = config.train.global_batch // ranks.world_size
    passes = f" ({local_batch // micro_batch} passes of {micro_batch})" if micro_batch < local_batch else ""
    print(
        f"{config.name}: {parameters / 1e6:.2f} M parameters, {precision}, ZeRO stage {config.zero.stage}, "
        f"{ranks.world_size} x {local_batch} samples a step{passes}, "
        f"{config.train.steps} steps, {ranks.device.type}",
        flush=True,
    )
    if latest is not None:
        print(f"resuming from {latest} after step {first_step}", flush=True)
        for change in changes:
            print(f"changed since step {first_step}: {change}", flush=True)
        if first_step == config.train.steps:
            print(
                f"all {first_step} steps are made: nothing is trained, only exported and scored; "
                "raise train.steps to train on, or give another run_dir to start anew",
                flush=True,
            )


def git_commit() -> str | None:
    """Commit of the checkout this code runs from, or None outside one."""
    done = subprocess.run(
        ["git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() if done.returncode == 0 else None
