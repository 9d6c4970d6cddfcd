"""The scripts work where DeepSpeed is not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from segclip.models.checkpoint import load

pytestmark = pytest.mark.slow


def without_deepspeed(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A command line in a process that cannot import DeepSpeed."""
    code = f"import sys; sys.modules['deepspeed'] = None; from segclip.eval.{program} import main; main(sys.argv[1:])"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_eval_and_segment(checkpoint, scenes_root, pictures, tmp_path) -> None:
    done = without_deepspeed(
        "run", "--checkpoint", checkpoint, "--dataset", "scenes", "--data-root", scenes_root, "--out", tmp_path / "out",
        "--limit", 2, "--pictures", 1,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "result.json").is_file()
    Image.fromarray(pictures(30, 40)).save(tmp_path / "photo.jpg")
    done = without_deepspeed(
        "segment_cli", tmp_path / "photo.jpg", "--classes", "sand", "grass", "--checkpoint", checkpoint,
        "--out", tmp_path / "segments",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "segments" / "photo_labels.png").is_file()


def test_a_checkpoint_in_pieces_names_the_way_out(checkpoint, scenes_root, tmp_path) -> None:
    folder = tmp_path / "run" / "checkpoints" / "step-00000007"
    folder.mkdir(parents=True)
    settings = {"model": load(checkpoint).config.model_dump(mode="json"), "zero": {"stage": 3}}
    Path(folder / "config.yaml").write_text(yaml.safe_dump(settings))
    Path(folder / "checksums.json").write_text("{}")
    done = without_deepspeed(
        "run", "--checkpoint", tmp_path / "run", "--dataset", "scenes", "--data-root", scenes_root
    )
    assert done.returncode == 2
    assert done.stderr.strip() == (
        f"error: {folder} is in pieces (ZeRO stage 3), which DeepSpeed joins, and DeepSpeed is not installed here; "
        f"where it is, `segclip-export {folder} --out DIR` makes an export that needs none"
    )
