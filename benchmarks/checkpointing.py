"""What a checkpoint costs training, and how soon a run goes on after it is started again.

    python -m benchmarks.checkpointing
    python -m benchmarks.checkpointing --quick   # the network of the quickstart

ViT-B/16 (189 M parameters, float32, ZeRO stage 1, one process): the same state is saved in turn with training waiting
for the disk and in the background; "blocked" is how long the call holds training up. The first save in the background
also gets the host memory for its copy, and is told apart. Then a new process resumes from the last checkpoint: from its
start to the end of its first step, of two samples.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.report import ROOT, Figure, arguments, print_figures, write_report
from benchmarks.training_case import random_batch, run_config

if TYPE_CHECKING:
    from segclip.trainer.config import RunConfig

BLOCKED, RESUME = 0.3, 30.0
WORDS, SAMPLES = 32, 2


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="saves of either way (default: 3)")
    parser.add_argument(
        "--save", metavar="FOLDER", help="(internal) save checkpoints there, print what they took"
    )
    parser.add_argument("--resume", metavar="FOLDER", help="(internal) resume from this run and make a step")
    given = parser.parse_args()
    if given.save:
        print(json.dumps(save(Path(given.save), given.quick, given.rounds)))
        return
    if given.resume:
        print(resume(Path(given.resume), given.quick))
        return
    figures: dict[str, Figure] = {}
    with tempfile.TemporaryDirectory() as folder:
        size, seconds = json.loads(_part("--save", folder, given.quick, given.rounds))
        waiting, first, blocked = (
            statistics.median(seconds[name]) for name in ("waiting", "first", "blocked")
        )
        ratio = blocked / waiting
        figures["checkpoint"] = Figure(size / 2**30, "GiB")
        figures["training waits for the disk"] = Figure(waiting, "s")
        figures["in the background: blocked"] = Figure(blocked, "s")
        figures["in the background: blocked by the first"] = Figure(first, "s")
        figures["in the background: until it is there"] = Figure(statistics.median(seconds["total"]), "s")
        figures["blocked / waiting for the disk"] = Figure.at_most(
            ratio, "", BLOCKED, f"{min(seconds['blocked']):.2f}-{max(seconds['blocked']):.2f} s"
        )
        begin = time.perf_counter()
        parts = _part("--resume", folder, given.quick, given.rounds)
        took = time.perf_counter() - begin
        figures["start of a process to its first step"] = Figure.at_most(took, "s", RESUME, parts)
    print_figures("Checkpoints", figures)
    write_report(given.json, figures)


def _part(what: str, folder: str, quick: bool, rounds: int) -> str:
    """The last line of this program in a process of its own, so that one does not hold the other's memory."""
    command = [sys.executable, "-m", "benchmarks.checkpointing", what, folder, "--rounds", str(rounds)]
    done = subprocess.run(
        [*command, *(["--quick"] if quick else [])], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{what} failed: {done.stderr}")
    return done.stdout.strip().splitlines()[-1]


def save(folder: Path, quick: bool, rounds: int) -> tuple[int, dict[str, list[float]]]:
    """Bytes of a checkpoint, and seconds: ``waiting``, ``first``, ``blocked`` and ``total``."""
    from segclip.trainer.checkpoints.config import CheckpointConfig
    from segclip.trainer.checkpoints.train_state import TrainState
    from segclip.trainer.checkpoints.writer import CheckpointWriter
    from segclip.trainer.distributed import start
    from segclip.trainer.engine import build_engine
    from segclip.trainer.step import train_step

    ranks, config = start(), _config(quick)
    engine = build_engine(config, ranks)
    train_step(engine, random_batch(config, SAMPLES, 0), 0, config.loss)
    seconds: dict[str, list[float]] = {name: [] for name in ("waiting", "first", "blocked", "total")}
    writers = {
        name: CheckpointWriter(
            engine, CheckpointConfig(keep_last=1, background=background), folder, "", ranks
        )
        for name, background in (("waiting", False), ("blocked", True))
    }
    step = 0
    for turn in range(rounds + 1):
        for name, writer in writers.items():
            step += 1
            begin = time.perf_counter()
            writer.save(TrainState(step, 0, SAMPLES, None, None))
            took = time.perf_counter() - begin
            writer.wait(last=True)
            if turn == 0:
                seconds["first"] += [took] if name == "blocked" else []
                continue
            seconds[name].append(took)
            if name == "blocked":
                seconds["total"].append(time.perf_counter() - begin)
    (newest,) = (folder / "checkpoints").glob("step-*")
    return sum(path.stat().st_size for path in newest.iterdir()), seconds


def resume(folder: Path, quick: bool) -> str:
    """Load the newest checkpoint and make a step: seconds of each part."""
    begin = time.perf_counter()
    from segclip.trainer.checkpoints.integrity import newest_intact
    from segclip.trainer.checkpoints.loading import load_checkpoint
    from segclip.trainer.distributed import start
    from segclip.trainer.engine import build_engine
    from segclip.trainer.step import train_step

    ranks, config = start(), _config(quick)
    marks = {"imports": time.perf_counter()}
    latest = newest_intact(folder, ranks)
    assert latest is not None
    marks["verified"] = time.perf_counter()
    engine = build_engine(config, ranks, resuming=True)
    marks["built"] = time.perf_counter()
    load_checkpoint(engine, latest, ranks)
    marks["loaded"] = time.perf_counter()
    train_step(engine, random_batch(config, SAMPLES, 0), 0, config.loss)
    marks["first step"] = time.perf_counter()
    told = []
    for name, mark in marks.items():
        told.append(f"{name} {mark - begin:.1f}")
        begin = mark
    return ", ".join(told)


def _config(quick: bool) -> RunConfig:
    from segclip.models.config import ModelConfig
    from segclip.models.sizes import SIZES

    model = ModelConfig(**SIZES["quickstart" if quick else "vit_b16"])
    return run_config(model, SAMPLES, words=16 if quick else WORDS, stage=1)


if __name__ == "__main__":
    main()
