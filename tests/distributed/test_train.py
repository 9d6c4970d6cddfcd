"""Training on two real ranks: the same losses at every ZeRO stage, on one rank, and after a resume."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow
WORKER = Path(__file__).with_name("train_variants.py")
Launch = Callable[..., subprocess.CompletedProcess[str]]
PARTS = ("loss/total", "loss/contrastive", "loss/superpixel_kl", "loss/reconstruction", "gradient_norm")


def losses(run_dir: Path) -> list[dict[str, float]]:
    """What each step of a run reported."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def runs(launch: Launch, config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps at each stage; six steps in two halves; six steps on one rank."""
    root = tmp_path_factory.mktemp("runs")
    two = [f"{root}/zero{stage}::zero.stage={stage}" for stage in range(4)]
    two += [f"{root}/bf16::train.precision=bf16"]
    done = launch(WORKER, config_file, *two)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    one = launch(WORKER, config_file, f"{root}/one", ranks=1)
    assert one.returncode == 0, one.stdout[-3000:] + one.stderr[-3000:]
    return root


@pytest.mark.parametrize("run", ["zero0", "zero2", "zero3", "one"])
def test_the_same_losses_at_every_stage_and_on_one_rank(runs: Path, run: str) -> None:
    expected, found = losses(runs / "zero1"), losses(runs / run)
    assert [row["step"] for row in found] == [1, 2, 3, 4, 5, 6]
    for before, after in zip(expected, found, strict=True):
        for part in PARTS:
            assert after[part] == pytest.approx(before[part], rel=1e-5, abs=1e-6), (part, before["step"])


def test_losses_are_those_of_a_network_that_learns(runs: Path) -> None:
    found = losses(runs / "zero1")
    assert found[-1]["loss/total"] < found[0]["loss/total"]
    assert all(row["loss/superpixel_kl"] > 0 for row in found)


def test_bf16_stays_near_fp32(runs: Path) -> None:
    for before, after in zip(losses(runs / "zero1"), losses(runs / "bf16"), strict=True):
        assert after["loss/total"] == pytest.approx(before["loss/total"], rel=0.05)
        assert after["loss/total"] != before["loss/total"]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_resuming_in_the_middle_gives_the_same_next_losses(
    launch: Launch, config_file: Path, runs: Path, tmp_path: Path, stage: int
) -> None:
    """Publish only the checkpoint of step 3 and start the same command again."""
    run = tmp_path / "run"
    shutil.copytree(
        runs / f"zero{stage}" / "checkpoints" / "step-00000003", run / "checkpoints" / "step-00000003"
    )
    done = launch(WORKER, config_file, f"{run}::zero.stage={stage}")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    expected, found = losses(runs / f"zero{stage}")[3:], losses(run)
    assert [row["step"] for row in found] == [4, 5, 6]
    for before, after in zip(expected, found, strict=True):
        for part in PARTS:
            assert after[part] == before[part], (part, before["step"])
    weights, resumed = (
        load_file(folder / "export" / "model.safetensors") for folder in (runs / f"zero{stage}", run)
    )
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)


def test_exports_agree_over_stages(runs: Path) -> None:
    expected = load_file(runs / "zero1" / "export" / "model.safetensors")
    for stage in (0, 2, 3):
        found = load_file(runs / f"zero{stage}" / "export" / "model.safetensors")
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(
                found[name], value, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
            )
    assert json.loads((runs / "zero1" / "summary.json").read_text())["step"] == 6


@pytest.mark.parametrize("run", ["zero1", "one"])
def test_what_happened_to_the_data_is_summed_over_ranks(runs: Path, run: str) -> None:
    rows = losses(runs / run)
    assert [row["data/samples"] for row in rows] == [16.0 * step for step in range(1, 7)]
    assert rows[-1]["data/store/bytes"] > 0
    assert rows[-1]["data/bad_shards"] == 0
