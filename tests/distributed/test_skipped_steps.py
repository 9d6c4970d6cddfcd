"""One rank's gradient is not finite: both ranks skip that step, whatever is sharded and in whichever precision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from segclip.trainer.faults import FAULTS, FIRED
from tests.distributed.conftest import selected
from tests.ranks import complete
from tests.run_files import metrics

pytestmark = pytest.mark.slow
WORKER = Path(__file__).with_name("skipped_steps.py")
VARIANTS = {
    **{f"zero{stage}": [f"zero.stage={stage}"] for stage in range(4)},
    **{f"bf16-zero{stage}": [f"zero.stage={stage}", "train.precision=bf16"] for stage in range(4)},
    "passes-zero0": ["zero.stage=0", "train.micro_batch=4"],
    "passes-bf16-zero2": ["zero.stage=2", "train.micro_batch=4", "train.precision=bf16"],
    "lamb": ["zero.stage=0", "optimizer.kind=lamb"],
    "offload2": ["zero.stage=2", "zero.offload_optimizer=cpu"],
    "offload3": ["zero.stage=3", "zero.offload_optimizer=cpu", "zero.offload_parameters=cpu"],
}


RARE = ("bf16-zero1", "bf16-zero2", "passes-zero0", "offload2")
"""What says nearly the same as others: left to make test-all."""


def named(*names: str) -> list[Any]:
    return [pytest.param(name, marks=[pytest.mark.exhaustive] if name in RARE else []) for name in names]


@pytest.fixture(scope="module")
def output() -> list[str]:
    return []


@pytest.fixture(scope="module")
def runs(
    config_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
    output: list[str],
    request: pytest.FixtureRequest,
) -> Path:
    """Six steps each, of which the fourth is spoilt; and a run that is spoilt from the fifth on."""
    root = tmp_path_factory.mktemp("skips")
    wanted = {"zero1"} | selected(request, Path(__file__), "name")
    words = [f"{root}/hopeless::5-99::train.steps=20::train.max_skipped=2::checkpoint.every=2"]
    words += [
        "::".join([f"{root}/{name}", "4-4", *overrides])
        for name, overrides in VARIANTS.items()
        if name in wanted
    ]
    # The first run's last checkpoint is still being written when its last step ends. The fault happens once.
    slow_disk = {"where": "publish rename", "rank": 0, "step": 6, "what": "sleep 3"}
    environment = {FAULTS: json.dumps([slow_disk]), FIRED: f"{root}/fired"}
    output.append(complete(WORKER, config_file, *words, environment=environment))
    return root


def seen(run_dir: Path) -> list[dict[str, object]]:
    """What each rank saw."""
    return [json.loads((run_dir / f"seen-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", named(*VARIANTS))
def test_both_ranks_leave_weights_and_moments_as_they_were(runs: Path, name: str) -> None:
    # The first step warms up from rate 0, yet moments move.
    for rank in seen(runs / name):
        assert rank == {"changed": [True, True, True, False, True, True], "error": None}


@pytest.mark.parametrize("name", named(*VARIANTS))
def test_the_skip_is_counted_and_training_goes_on(runs: Path, name: str) -> None:
    rows = metrics(runs / name)
    assert [row["skips/nonfinite"] for row in rows] == [0, 0, 0, 1, 1, 1]
    assert [row["gradient_norm"] is not None for row in rows] == [True, True, True, False, True, True]
    weights = load_file(runs / name / "export" / "model.safetensors")
    assert all(bool(value.isfinite().all()) for value in weights.values())


@pytest.mark.parametrize("name", named("zero0", "zero2", "zero3", "offload2", "offload3"))
def test_what_is_skipped_is_the_same_at_every_stage(runs: Path, name: str) -> None:
    expected = load_file(runs / "zero1" / "export" / "model.safetensors")
    for key, value in load_file(runs / name / "export" / "model.safetensors").items():
        torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-6)


def test_a_run_that_only_skips_is_stopped_and_names_its_last_good_checkpoint(
    runs: Path, output: list[str]
) -> None:
    one, two = seen(runs / "hopeless")
    assert one["changed"] == two["changed"] == [True] * 4 + [False] * 3
    assert one["error"] == [
        "the gradient was not finite in 3 steps in a row, up to step 7; all were skipped, and train.max_skipped allows "
        "2: lower optimizer.lr, raise schedule.warmup, or train in bf16 or fp32; the last good checkpoint is "
        f"{runs}/hopeless/checkpoints/step-00000006",
        True,
    ]
    assert isinstance(one["error"], list)
    assert two["error"] == [one["error"][0], False]
    assert "step 6 skipped: its gradient is not finite (2 in a row; train.max_skipped allows 2)" in output[0]
