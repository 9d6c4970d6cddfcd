"""The training command refuses bad input in one line, with exit code 2 and no stack trace."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from segclip.data_pipelines.scenes.sets import SceneSet, write_scene_shards
from tests.ranks import start

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
RUN = ROOT / "trainer" / "run.py"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scene_shards(str(folder), SceneSet(32, 3, size=48), per_shard=8, processes=1)
    return folder


def run(
    *arguments: str, program: tuple[str, ...] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    command = [
        *(program or (sys.executable,)),
        str(RUN),
        "--config",
        str(ROOT / "configs" / "quickstart.yaml"),
        *arguments,
    ]
    clean = {
        key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "RANK", "WORLD_SIZE"))
    }
    return subprocess.run(
        command,
        env={**clean, "OMP_NUM_THREADS": "1", **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def forked(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The same, in a rank that has torch and DeepSpeed loaded already."""
    return start(RUN, "--config", ROOT / "configs" / "quickstart.yaml", *arguments, ranks=1).finish(240)


def small(shards: Path | str, run_dir: Path) -> list[str]:
    return [
        f"data.shards={shards}",
        f"run_dir={run_dir}",
        "data.workers=0",
        "data.lanes=2",
        "data.shuffle_block=4",
        "train.global_batch=8",
        "train.steps=2",
        "tracking.enabled=false",
        "evaluation.dataset=null",
    ]


def one_error(done: subprocess.CompletedProcess[str]) -> str:
    """The single line that starts with ``error:``."""
    assert done.returncode != 0, done.stdout
    assert "Traceback" not in done.stderr + done.stdout
    lines = [line for line in (done.stderr + done.stdout).splitlines() if "error: " in line]
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_misspelt_key_and_wrong_type() -> None:
    message = one_error(run("model.centres=4", "train.steps=soon"))
    for word in ("model.centres", "'centers'", "train.steps", "'soon'"):
        assert word in message


def test_missing_data(tmp_path: Path) -> None:
    message = one_error(forked(*small(tmp_path / "nowhere", tmp_path / "run")))
    assert str(tmp_path / "nowhere") in message


def test_missing_evaluation_data_is_found_before_training(shards: Path, tmp_path: Path) -> None:
    message = one_error(
        forked(
            *small(shards, tmp_path / "run"),
            "evaluation.dataset=scenes",
            f"evaluation.data_root={tmp_path}/eval",
        )
    )
    assert f"{tmp_path}/eval" in message


def test_a_dry_run_tells_and_trains_nothing(shards: Path, tmp_path: Path) -> None:
    done = run(*small(shards, tmp_path / "run"), "--dry-run", "--gpus", "2")
    assert done.returncode == 0, done.stderr
    assert "nothing is trained (--dry-run)" in done.stdout
    assert "8 = 2 ranks x 1 micro-batches x 4" in done.stdout
    assert not (tmp_path / "run").exists()
    assert "4 shards are fewer than 8 readers" in one_error(
        run(*small(shards, tmp_path / "run"), "--dry-run", "--gpus", "8")
    )


def test_out_of_memory_says_what_needs_less(shards: Path, tmp_path: Path) -> None:
    """A limit of the process stands for the end of the machine's memory."""
    limited = ("prlimit", f"--data={3 << 30}", sys.executable)
    done = run(*small(shards, tmp_path / "run"), "train.global_batch=2048", program=limited)
    message = one_error(done)
    assert "out of memory" in message
    assert "train.micro_batch smaller" in done.stderr
    assert "segclip-doctor memory" in done.stderr


def test_resuming_another_model_is_refused(shards: Path, tmp_path: Path) -> None:
    first = forked(*small(shards, tmp_path / "run"))
    assert first.returncode == 0, first.stdout
    assert (tmp_path / "run" / "export" / "model.safetensors").is_file()
    resolved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert resolved["train"]["steps"] == 2
    message = one_error(forked(*small(shards, tmp_path / "run"), "train.steps=3", "model.centers=6"))
    assert "model.centers: 8 -> 6" in message
