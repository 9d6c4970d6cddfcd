"""What recording in MLflow costs a training step when the server takes ten seconds for each answer.

    python -m benchmarks.tracking

A real MLflow server, behind a proxy that holds back each answer. Steps of a small network take turns, in an order that
changes: one hands its metrics to a tracker of that server, which sends them meanwhile, two others do not; what these
two differ by is the noise of the machine.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.mlflow_server import mlflow_server
from benchmarks.report import Figure, arguments, print_figures, write_report
from benchmarks.shaping_proxy import shaping_proxy

SECONDS_A_CALL = 10.0
RATIO = 1.05
METRICS = {f"loss/{number}": 1.0 for number in range(40)}


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = arguments(__doc__)
    parser.add_argument("--steps", type=int, help="steps of each kind (default: 300; quick: 60)")
    given = parser.parse_args()
    steps = (60 if given.quick else 300) if given.steps is None else given.steps
    if steps < 1:
        parser.error(f"--steps must be at least 1, got {steps}")
    import mlflow.system_metrics.system_metrics_monitor  # noqa: F401  which takes seconds, once in a process

    from segclip.trainer.tracking import Tracker, TrackingConfig

    # That the server is slow is what this is about.
    logging.getLogger("segclip.trainer.tracking").setLevel(logging.ERROR)
    step = small_step()
    kinds = ("recorded", "alone", "alone again")
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    calls = []
    with (
        tempfile.TemporaryDirectory() as folder,
        mlflow_server(Path(folder)) as address,
        shaping_proxy(int(address.rpartition(":")[2]), rate=None, first_byte=SECONDS_A_CALL) as slow,
    ):
        config = TrackingConfig(experiment="benchmark", uri=slow, flush_seconds=0.01, system_metrics=False)
        tracker = Tracker(config, Path(folder, "run"), "benchmark")
        for _ in range(10):
            step()  # nothing is warm before
        for number in range(steps):
            for turn in range(len(kinds)):
                kind = kinds[(number + turn) % len(kinds)]
                begin = time.perf_counter()
                step()
                if kind == "recorded":
                    before = time.perf_counter()
                    tracker.metrics(METRICS, number)
                    calls.append(time.perf_counter() - before)
                seconds[kind].append(time.perf_counter() - begin)
        left = tracker.drain()
    middle = {kind: statistics.median(seconds[kind]) for kind in kinds}
    ratio, noise = (middle[kind] / middle["alone"] for kind in ("recorded", "alone again"))
    figures = {
        "step with metrics sent / without": Figure.at_most(
            ratio,
            "",
            RATIO,
            f"{1e3 * middle['recorded']:.1f} ms beside {1e3 * middle['alone']:.1f} ms, medians of {steps} steps; "
            f"noise {noise:.3f}; the server takes {SECONDS_A_CALL:.0f} s a call, {left} records wait at the end",
        ),
        "longest call of the tracker": Figure(1e3 * max(calls), "ms", beside=f"of {len(calls)}"),
    }
    print_figures("MLflow that is slow", figures)
    write_report(given.json, figures)


def small_step() -> Callable[[], None]:
    """Forward, backward and update of a small network: some tens of milliseconds."""
    import torch

    torch.set_num_threads(1)
    network = torch.nn.Sequential(
        *(
            torch.nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(3)
        )
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    content = torch.randn(8, 64, 128)

    def step() -> None:
        network(content).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    main()
