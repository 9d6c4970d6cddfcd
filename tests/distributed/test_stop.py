"""What a user got wrong stops every rank at once: one line that names the value and the remedy, and nothing left over.

Each case starts two real ranks. How long they take to start depends on the machine, so the bound counts from the
moment the error is said.
"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.ranks import start

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
# From the error to the end of the last rank, which waits 5 s for the one that speaks, and may have started later.
SECONDS_TO_STOP = 30.0
# Two ranks on a busy machine take their time to start.
SECONDS_TO_FAIL = 240.0
NOBODY = {
    "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
    "AWS_ACCESS_KEY_ID": "a",
    "AWS_SECRET_ACCESS_KEY": "b",
    "AWS_REGION": "us-east-1",
}


@dataclass(frozen=True)
class Outcome:
    """What the ranks said, their exit codes, the seconds from the first error to the last end, and who was left."""

    text: str
    codes: list[int | None]
    seconds_to_stop: float
    left: list[str]

    @property
    def errors(self) -> list[str]:
        return [line for line in self.text.splitlines() if "error: " in line]


def launch(config: Path, *arguments: str, environment: dict[str, str] | None = None) -> Outcome:
    """Start two ranks and watch how they end; one that has not in time has the exit code None, and is killed."""
    group = start(ROOT / "trainer" / "run.py", "--config", config, *arguments, environment=environment)
    try:
        _wait(lambda: "error: " in group.text() or "Traceback" in group.text(), SECONDS_TO_FAIL)
        # Workers of a rank end some seconds after it, when they notice.
        stopped = _wait(lambda: None not in group.codes() and not group.members(), SECONDS_TO_STOP)
        return Outcome(group.text(), group.codes(), stopped, list(group.members().values()))
    finally:
        group.kill()


def _wait(condition: Callable[[], bool], longest: float) -> float:
    """Seconds until a condition held, or ``longest``."""
    begin = time.monotonic()
    while not condition() and time.monotonic() - begin < longest:
        time.sleep(0.1)
    return time.monotonic() - begin


def spoiled(shards: Path, copy: Path, ending: str, content: bytes) -> Path:
    """A copy of the set in which one member of each sample of the first shard is replaced: one rank alone reads it."""
    shutil.copytree(shards, copy)
    shard = copy / "00000.tar"
    with tarfile.open(shard) as tar:
        members = [(each, tar.extractfile(each).read()) for each in tar.getmembers()]  # type: ignore[union-attr]
    with tarfile.open(shard, "w") as tar:
        for member, data in members:
            data = content if member.name.endswith(ending) else data
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["shards"][0]["bytes"] = shard.stat().st_size
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


def no_shards(shards: Path, copy: Path) -> Path:
    copy.mkdir()
    manifest = json.loads((shards / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "shards": []}))
    return copy


@dataclass(frozen=True)
class Case:
    """Settings that are wrong, and the words that the error must hold; ``{data}`` is where the shards lie."""

    words: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    data: Callable[[Path, Path], object] = lambda shards, free: shards
    environment: dict[str, str] | None = None


CASES = {
    "misspelt key": Case(("model.centres", "did you mean 'centers'"), ("model.centres=4",)),
    "wrong type": Case(("train.steps = 'soon'", "valid integer"), ("train.steps=soon",)),
    "missing data path": Case(("{data}", "does not exist", "check the data path"), data=lambda shards, free: free),
    "unreachable s3 endpoint": Case(
        ("s3://bucket/scenes", "cannot be reached", "Check AWS_ENDPOINT_URL (http://127.0.0.1:9)"),
        data=lambda shards, free: "s3://bucket/scenes",
        environment=NOBODY,
    ),
    "zero shards": Case(("{data}", "zero shards", "build a shard set first"), data=no_shards),
    "fewer shards than workers": Case(
        ("4 shards are fewer than 12 readers (2 ranks x 6 workers)", "use fewer workers"),
        ("data.workers=6", "data.lanes=12"),
    ),
    "a batch that the ranks cannot share": Case(
        ("train.global_batch is 9", "8 or 10 would do"), ("train.global_batch=9",)
    ),
    "passes that do not add up to a rank's share": Case(
        ("train.micro_batch is 3", "8 samples", "train.micro_batch=1, 2, 4 or 8 would do"), ("train.micro_batch=3",)
    ),
    "a picture that does not decode": Case(
        ("rank ", "{data}/00000.tar", "the picture .jpg is bad", "repair or remove it"),
        ("data.checksum=false",),
        data=lambda shards, free: spoiled(shards, free, ".jpg", b"<html>no</html>"),
    ),
    "an empty caption": Case(
        ("rank ", "{data}/00000.tar", "its caption is empty", "write a text or remove the sample"),
        ("data.checksum=false", "data.workers=1"),
        data=lambda shards, free: spoiled(shards, free, ".txt", b"  "),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_all_ranks_stop_with_one_line(name: str, config_file: Path, shards: Path, tmp_path: Path) -> None:
    case = CASES[name]
    data = case.data(shards, tmp_path / "data")
    done = launch(
        config_file, f"data.shards={data}", f"run_dir={tmp_path / 'run'}", *case.overrides,
        environment=case.environment,
    )  # fmt: skip
    (error,) = done.errors
    for word in case.words:
        assert word.format(data=data) in error
    assert "Traceback" not in done.text
    assert set(done.codes).isdisjoint({0, None})
    assert done.seconds_to_stop < SECONDS_TO_STOP
    assert done.left == []


def test_debug_shows_the_stack_trace_and_stops_all_ranks_too(
    config_file: Path, shards: Path, tmp_path: Path
) -> None:
    data = spoiled(shards, tmp_path / "data", ".jpg", b"<html>no</html>")
    done = launch(
        config_file, f"data.shards={data}", f"run_dir={tmp_path / 'run'}", "data.checksum=false", "--debug"
    )
    assert "Traceback (most recent call last)" in done.text
    assert 'trainer/loop.py", line' in done.text
    assert "ValueError: sample " in done.text
    assert set(done.codes).isdisjoint({0, None})
    assert done.seconds_to_stop < SECONDS_TO_STOP
    assert done.left == []
