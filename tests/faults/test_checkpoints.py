"""Kills while a checkpoint is written and published, damage to published ones, and a full disk."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from tests.faults.conftest import STEPS, Fault, Run
from tests.small_disk import small_disk
from tests.trainer.checkpoints.checkpoint_files import flip_bit

pytestmark = pytest.mark.slow

WRITES = [
    Fault(where, 4, what, rank)
    for rank, name in (
        (0, "mp_rank_00_model_states.pt"),
        (0, "zero_pp_rank_0_mp_rank_00_optim_states.pt"),
        (1, "zero_pp_rank_1_mp_rank_00_optim_states.pt"),
    )
    for where, what in ((f"write {name}", "kill"), (f"wrote {name}", "tear"))
]


def resumed_from(text: str) -> int | None:
    found = re.search(r"resuming from .*/step-\d+ after step (\d+)", text)
    return int(found[1]) if found else None


def test_kills_while_files_are_written(run: Run, unbroken: Run) -> None:
    """Each file of each rank, before it and in its middle; each start meets the next fault, at step 4."""
    for count, fault in enumerate(WRITES):
        codes, text = run(faults=WRITES[: count + 1])
        assert run.fired() == [each.where for each in WRITES[: count + 1]], text
        assert resumed_from(text) == (2 if count else None)
        assert codes[fault.rank] == -9
        assert codes[1 - fault.rank] == 69, text
        assert run.checkpoints() == [".writing-step-00000004", "step-00000002"]
    codes, text = run()
    assert codes == [0, 0], text
    assert resumed_from(text) == 2
    assert run.checkpoints() == ["step-00000004", "step-00000006"]
    run.must_equal(unbroken)


@pytest.mark.parametrize(
    ("where", "after"),
    [
        ("publish checksums", 2),
        ("publish rename", 2),
        ("publish pointer", 4),
        ("publish latest", 4),
        ("publish prune", 4),
        ("publish done", 4),
    ],
)
def test_kills_around_each_step_of_publishing(run: Run, unbroken: Run, where: str, after: int) -> None:
    codes, text = run(faults=[Fault(where, 4)])
    assert run.fired() == [where], text
    assert codes[0] == -9
    assert codes[1] == 69, text
    codes, text = run(faults=[Fault(where, 4)])
    assert run.fired() == [where]
    assert codes == [0, 0], text
    assert resumed_from(text) == after
    assert (run.folder / "checkpoints" / "latest").read_text() == "step-00000006\n"
    assert run.checkpoints() == ["step-00000004", "step-00000006"]
    run.must_equal(unbroken)


FILES = [
    "checksums.json",
    pytest.param("config.yaml", marks=pytest.mark.exhaustive),
    "state.json",
    "mp_rank_00_model_states.pt",
    pytest.param("zero_pp_rank_0_mp_rank_00_optim_states.pt", marks=pytest.mark.exhaustive),
    "zero_pp_rank_1_mp_rank_00_optim_states.pt",
]


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit(finished: Run, unbroken: Run, name: str) -> None:
    """All ranks go back to the same older checkpoint, and make the lost steps again."""
    flip_bit(finished.folder / "checkpoints" / "step-00000006" / name)
    codes, text = finished()
    assert codes == [0, 0], text
    assert text.count("checkpoint step-00000006 is damaged and not used") == 1
    assert name in text.split("is damaged and not used: ")[1].splitlines()[0]
    assert resumed_from(text) == 4
    assert finished.checkpoints() == [".damaged-step-00000006", "step-00000004", "step-00000006"]
    finished.must_equal(unbroken)


def test_no_intact_checkpoint_is_no_new_beginning(finished: Run) -> None:
    folders = sorted((finished.folder / "checkpoints").glob("step-*"))
    (folders[0] / "checksums.json").unlink()
    (folders[1] / "state.json").unlink()
    codes, text = finished()
    assert codes == [2, 2]
    (line,) = [line for line in text.splitlines() if "error: " in line]
    assert "no checkpoint of" in line
    assert "step-00000004/checksums.json is missing" in line
    assert "step-00000006/state.json is missing" in line
    assert "to start anew" in line
    assert finished.checkpoints() == ["step-00000004", "step-00000006"]


@pytest.mark.parametrize("pointer", [None, "", "step-00000099\n"])
def test_the_pointer_is_not_needed(finished: Run, unbroken: Run, pointer: str | None) -> None:
    shutil.rmtree(finished.folder / "checkpoints" / "step-00000006")
    latest = finished.folder / "checkpoints" / "latest"
    latest.unlink() if pointer is None else latest.write_text(pointer)
    codes, text = finished()
    assert codes == [0, 0], text
    assert resumed_from(text) == 4
    assert latest.read_text() == "step-00000006\n"
    finished.must_equal(unbroken)


@pytest.mark.parametrize("background", [True, False])
def test_a_full_disk(run: Run, unbroken: Run, background: bool) -> None:
    """12 MiB: room for one checkpoint of 8 MiB."""
    with small_disk(12 << 10) as disk:
        stopped_by_a_full_disk(Run(disk / "run", run.config), unbroken, background)


def stopped_by_a_full_disk(full: Run, unbroken: Run, background: bool) -> None:
    setting = f"checkpoint.background={str(background).lower()}"
    codes, text = full(setting)
    assert codes == [2, 2], text
    warning = next(line for line in text.splitlines() if line.startswith("warning: no checkpoint"))
    assert str(full.folder.parent) in warning
    assert re.search(r"No space left on device \([\d,]+ bytes wanted, [\d,]+ are free there\)", warning)
    assert "Training goes on" in warning
    assert f"step {STEPS}/" in text
    (error,) = [line for line in text.splitlines() if "error: " in line]
    assert "No space left on device" in error
    assert full.checkpoints() == ["step-00000002"]
    subprocess.run(["mount", "-o", "remount,size=64m", full.folder.parent], check=True)
    codes, text = full(setting)
    assert codes == [0, 0], text
    assert resumed_from(text) == 2
    full.must_equal(unbroken)
