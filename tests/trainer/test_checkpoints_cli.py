"""``segclip-checkpoints`` on folders of files, on a store, and on a real run."""

from __future__ import annotations

import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from segclip.trainer.checkpoints.retention import Retention
from segclip.trainer.checkpoints.store import send
from segclip.trainer.checkpoints_cli import main
from tests.exit_code import exit_code
from tests.trainer.checkpoints.checkpoint_files import flip_bit, write_checkpoint

command = partial(exit_code, main)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Checkpoints of steps 3 (the best), 6, 9 (torn) and 12, and a folder that was not written to its end."""
    run = tmp_path / "run"
    for step in (3, 6, 9, 12):
        write_checkpoint(run, step, best=(3, 0.4321), keep_every=6, keep_last=2)
    (run / "checkpoints" / "step-00000009" / "checksums.json").unlink()
    shutil.copy(run / "checkpoints" / "step-00000003" / "config.yaml", run)
    left = run / "checkpoints" / ".writing-step-00000015"
    left.mkdir()
    (left / "half").write_bytes(bytes(500))
    return run


def folders(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_a_list_tells_what_each_is_and_why_it_is_kept(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("list", run) == 0
    header, *rows = (line.split("  ") for line in capsys.readouterr().out.splitlines())
    assert [word.strip() for word in header if word] == [
        "step", "written", "size", "ranks", "ZeRO", "mIoU", "state", "kept as",
    ]  # fmt: skip
    cells = [[word.strip() for word in row if word] for row in rows]
    assert [(row[0], row[3], row[4], row[5], row[6], row[7]) for row in cells] == [
        ("3", "2", "1", "0.4321", "complete", "best"),
        ("6", "2", "1", "-", "complete", "every 6"),
        ("9", "2", "1", "-", "TORN (no checksums.json)", "-"),
        ("12", "2", "1", "-", "complete", "latest, every 6"),
    ]
    size = sum(path.stat().st_size for path in (run / "checkpoints" / "step-00000003").iterdir())
    assert cells[0][2] == f"{size / 1e3:.1f} kB"


def test_a_list_names_what_was_set_aside(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    aside = run / "checkpoints" / ".damaged-step-00000015"
    (run / "checkpoints" / ".writing-step-00000015").rename(aside)
    assert command("list", run) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if str(aside) in line)
    assert "prune deletes it" in line


def test_a_list_of_a_store(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = (tmp_path / "store").as_uri()
    send(run, url, Retention(keep_last=9))
    assert command("list", url) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [(row[0], row[-1]) for row in rows] == [("3", "best"), ("6", "6"), ("12", "6")]


@pytest.mark.parametrize("where", ["run", "store"])
def test_verify_names_every_bad_file(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    place, root = str(run), run / "checkpoints"
    if where == "store":
        root = tmp_path / "store"
        place = root.as_uri()
        send(run, place, Retention(keep_last=9))
    assert command("verify", place) == 0
    printed = capsys.readouterr().out
    assert "3 checkpoints, 18 files" in printed
    assert "all bytes are as written" in printed
    assert ("step-00000009: never chosen" in printed) == (where == "run")
    target = root / "step-00000006" / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    flip_bit(target)
    (root / "step-00000012" / "state.json").unlink()
    assert command("verify", place) == 1
    printed = capsys.readouterr().out
    assert printed.count("DAMAGED") == 2
    assert f"step-00000006/{target.name} has sha256" in printed
    assert "step-00000012/state.json is missing" in printed
    assert command("verify", place, "--step", "3") == 0
    assert command("verify", place, "--step", "4") == 2


def test_prune_keeps_what_the_run_keeps_and_says_what_it_frees(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = folders(run)
    assert command("prune", run, "--keep-last", "1", "--keep-every", "0", "--dry-run") == 0
    printed = capsys.readouterr().out
    assert [line.split("/")[-1].split()[0] for line in printed.splitlines()[:-1]] == [
        ".writing-step-00000015", "step-00000009", "step-00000006",
    ]  # fmt: skip
    assert "would be freed" in printed
    assert folders(run) == before
    assert command("prune", run) == 0  # keep_every 6 stands in its configuration
    assert folders(run) == ["step-00000003", "step-00000006", "step-00000012"]
    assert "unfinished, 500 B" in capsys.readouterr().out
    assert command("prune", run, "--keep-last", "1", "--keep-every", "0") == 0
    assert folders(run) == ["step-00000003", "step-00000012"]
    capsys.readouterr()
    assert command("prune", run, "--keep-last", "1", "--keep-every", "0") == 0
    assert capsys.readouterr().out.startswith("0 B freed in")


HOLDING = """
import sys
from segclip.trainer.run_lock import hold_run_folder
hold_run_folder(sys.argv[1])
print("held", flush=True)
input()
"""


def test_prune_refuses_while_the_run_goes_on(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = folders(run)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING, run], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert command("prune", run) == 2
        other.communicate("\n")
    assert "is in use by" in capsys.readouterr().err
    assert folders(run) == before
    assert command("prune", run, "--dry-run") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "/nowhere"], "is no folder of a run with checkpoints"),
        (["list", "s3://bucket/x?secret=1"], "credentials come from the environment"),
        (["list", "ftp://x"], "scheme 'ftp'"),
        (["prune", "s3://bucket/x"], "prune works on the folder of a run"),
        (["prune", "{run}", "--keep-last", "0"], "--keep-last must be 1 or more, got 0"),
        (["export", "s3://bucket/x", "--out", "x"], "export works on the folder of a run"),
        (["export", "{run}", "--step", "9", "--out", "x"], "has no such checkpoint, only 3, 6, 12, best"),
    ],
)
def test_errors_are_one_line(
    run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert command(*(argument.format(run=run) for argument in arguments)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]


def test_nothing_damaged_is_exported(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = run / "checkpoints" / "step-00000006" / "mp_rank_00_model_states.pt"
    target.write_bytes(target.read_bytes()[:-1])
    assert command("export", run, "--step", "6", "--out", tmp_path / "out") == 2
    assert "step 6 is damaged" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
