"""A run that goes on with another number of ranks: the next losses as they would have been, and no sample twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.faults.conftest import STEPS, Fault, Run
from tests.run_files import metrics

pytestmark = pytest.mark.slow
PARTS = ("loss/total", "loss/contrastive", "loss/superpixel_kl", "loss/reconstruction", "gradient_norm")


def begun(folder: Path, config: Path, ranks: int, stage: int) -> Run:
    """A run on so many ranks, asked to stop after its third step."""
    made = Run(folder / f"from-{ranks}-zero{stage}", config)
    codes, text = made(f"zero.stage={stage}", faults=[Fault("before step", 4, "SIGTERM")], ranks=ranks)
    assert codes == [75] * ranks, text
    assert made.fired() == ["before step"]
    return made


def positions(run: Run) -> dict[int, list[int]]:
    """Of the samples of each step, over all ranks."""
    found: dict[int, list[int]] = {}
    for path in run.folder.glob("samples-*.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            found.setdefault(row["step"], []).extend(row["positions"])
    return {step: sorted(each) for step, each in found.items()}


@pytest.mark.parametrize("stage", [1, pytest.param(2, marks=pytest.mark.exhaustive), 3])
def test_one_two_and_four_ranks(unbroken: Run, config_file: Path, tmp_path: Path, stage: int) -> None:
    starts = {ranks: begun(tmp_path, config_file, ranks, stage) for ranks in (1, 2)}
    for before, after in ((2, 1), (1, 2), (2, 4)):
        run = Run(tmp_path / f"{before}-to-{after}", config_file)
        shutil.copytree(starts[before].folder, run.folder)
        codes, text = run(f"zero.stage={stage}", ranks=after)
        assert codes == [0] * after, text
        assert f"was written by {before} ranks: joining its pieces" in text
        expected, found = metrics(unbroken.folder), metrics(run.folder)
        assert [row["step"] for row in found] == list(range(1, STEPS + 1))
        for row, right in zip(found, expected, strict=True):
            for part in PARTS:
                assert row[part] == pytest.approx(right[part], rel=2e-5, abs=1e-6), (part, row["step"])
        assert positions(run) == positions(unbroken)
