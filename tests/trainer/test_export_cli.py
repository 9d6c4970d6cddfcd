"""``segclip-export`` on a real run that starts from CLIP, and the model card of that run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import yaml

from segclip.data_pipelines.scenes.sets import SceneSet, write_scene_shards
from segclip.models.checkpoint import load
from segclip.models.segclip import SegCLIP
from segclip.trainer.export_cli import main
from tests.exit_code import exit_code

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
ARCHITECTURE: dict[str, Any] = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "width": 32, "heads": 2, "layers": 1},
}
RECIPE: dict[str, Any] = {
    "name": "from-clip",
    "model": {
        "image_size": 32,
        "patch_size": 8,
        "vision_width": 32,
        "vision_heads": 2,
        "vision_layers": 2,
        "first_stage_layers": 1,
        "centers": 4,
        "embed_dim": 32,
        "text_width": 32,
        "text_heads": 2,
        "text_layers": 1,
        "context_length": 16,
        "decoder_depth": 1,
        "decoder_heads": 2,
    },
    "data": {"image_size": 32, "words": 16, "workers": 0, "lanes": 2, "shuffle_block": 4},
    # So slow that the weights are still CLIP's afterwards.
    "train": {"steps": 1, "global_batch": 4, "precision": "fp32"},
    "optimizer": {"lr": 1e-12},
    "tracking": {"enabled": False},
}


def train(config: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "trainer" / "run.py"), "--config", str(config), *overrides],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[open_clip.CLIP, Path]:
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(3)
    clip = open_clip.CLIP(**ARCHITECTURE).eval()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": ARCHITECTURE}))
    torch.save(clip.state_dict(), folder / "open_clip_pytorch_model.bin")
    return clip, folder


@pytest.fixture(scope="module")
def config(clip: tuple[open_clip.CLIP, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Configuration of a run that has ended; the run lies in ``run`` beside it, its shards in ``scenes``."""
    folder = tmp_path_factory.mktemp("run")
    write_scene_shards(str(folder / "scenes"), SceneSet(8, 3, size=48), per_shard=4, processes=1)
    recipe = {
        **RECIPE,
        "run_dir": str(folder / "run"),
        "model": {**RECIPE["model"], "init_from": f"local-dir:{clip[1]}"},
        "data": {**RECIPE["data"], "shards": str(folder / "scenes")},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    done = train(path)
    assert done.returncode == 0, done.stderr
    return path


command = partial(exit_code, main)


def same(one: SegCLIP, other: SegCLIP) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_starts_from_clip(config: Path, clip: tuple[open_clip.CLIP, Path]) -> None:
    model = load(config.parent / "run" / "export")
    tokens = open_clip.SimpleTokenizer(context_length=16)(["a red circle", "sand"])
    torch.testing.assert_close(model.encode_text(tokens), clip[0].encode_text(tokens))
    block = clip[0].visual.transformer.resblocks[1]
    torch.testing.assert_close(model.vision.center_blocks[0].attn.qkv.weight, block.attn.in_proj_weight)


def test_a_run_whose_clip_is_missing_does_not_start(config: Path, tmp_path: Path) -> None:
    done = train(config, "model.init_from=local-dir:/nowhere", f"run_dir={tmp_path / 'other'}")
    assert done.returncode == 2
    assert "error: init_from 'local-dir:/nowhere': there is no /nowhere/open_clip_config.json" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_resumed_run_needs_clip_no_more(config: Path, tmp_path: Path) -> None:
    # The resumed run finds its checkpoint; the folder of CLIP may be gone by then.
    shutil.copytree(config.parent / "run", tmp_path / "run")
    name = yaml.safe_load(config.read_text())["model"]["init_from"].removeprefix("local-dir:")
    hidden = Path(name).with_name("hidden")
    Path(name).rename(hidden)
    try:
        done = train(config, "train.steps=2", f"run_dir={tmp_path / 'run'}")
    finally:
        hidden.rename(name)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "checkpoints" / "step-00000002").is_dir()


def test_the_model_card_of_a_run(config: Path, clip: tuple[open_clip.CLIP, Path]) -> None:
    export = config.parent / "run" / "export"
    card = json.loads((export / "config.json").read_text())["card"]
    manifest = (config.parent / "scenes" / "manifest.json").read_bytes()
    assert card["data"] == {
        "name": "scenes",
        "samples": 8,
        "manifest_sha256": hashlib.sha256(manifest).hexdigest(),
    }
    assert card["run"] == "from-clip"
    assert card["steps"] == 1
    assert card["recipe"]["optimizer"]["lr"] == 1e-12
    assert card["recipe"]["model"]["init_from"] == f"local-dir:{clip[1].name}"
    text = (export / "README.md").read_text()
    assert f"| started from | local-dir:{clip[1].name} |" in text
    assert card["data"]["manifest_sha256"] in text
    temporary = str(clip[1].parent)
    assert temporary not in text
    assert temporary not in (export / "config.json").read_text()


@pytest.mark.parametrize("source", ["run", "run/export", "run/checkpoints/step-00000001"])
def test_our_format_from_any_stage_of_a_run(config: Path, tmp_path: Path, source: str) -> None:
    assert command(config.parent / source, "--out", tmp_path / "x") == 0
    opened, expected = load(tmp_path / "x"), load(config.parent / "run" / "export")
    assert same(opened, expected)
    assert opened.card == expected.card
    assert (tmp_path / "x" / "README.md").is_file()


def test_a_run_that_has_not_ended(config: Path, tmp_path: Path) -> None:
    shutil.copytree(config.parent / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "export")
    assert command(tmp_path / "run", "--out", tmp_path / "x") == 0
    assert same(load(tmp_path / "x"), load(config.parent / "run" / "export"))


def test_there_and_back_by_the_original_names(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = load(config.parent / "run" / "export")
    assert command(config.parent / "run", "--out", tmp_path / "x", "--format", "original") == 0
    assert "vision_layers is 2 here and always 12 in the original" in capsys.readouterr().err
    assert command(tmp_path / "x" / "segclip.bin", "--out", tmp_path / "y") == 0
    opened = load(tmp_path / "y")
    assert same(opened, expected)
    assert opened.config == expected.config


def test_a_program(config: Path, tmp_path: Path) -> None:
    assert (
        command(config.parent / "run", "--out", tmp_path, "--format", "torch-export", "--size", "16", "24")
        == 0
    )
    program = torch.export.load(tmp_path / "segclip.pt2").module()
    images = torch.randint(0, 256, (3, 3, 16, 24), dtype=torch.uint8)
    output = load(config.parent / "run" / "export").encode_image(images)
    found = program(images)
    torch.testing.assert_close(found["region_tokens"], output.center_tokens_BGC)
    assert torch.equal(found["assignment"], output.assignment.hard_BGL.argmax(1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere", "--out", "x"], "no checkpoint at /nowhere"),
        (["{empty}", "--out", "x"], "is no checkpoint"),
        (["{run}", "--out", "{file}"], "is a file; give a folder"),
        (["{run}", "--out", "x", "--size", "16"], "go with --format torch-export alone"),
        (["{run}", "--out", "x", "--format", "torch-export", "--size", "1", "2", "3"], "one number or two"),
        (
            ["{run}", "--out", "{out}", "--format", "torch-export", "--size", "17"],
            "multiples of the patch size 8",
        ),
    ],
)
def test_errors_are_one_line(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    places = {
        "empty": tmp_path / "empty",
        "run": config.parent / "run",
        "file": tmp_path / "file",
        "out": tmp_path / "out",
    }
    assert command(*(argument.format(**places) for argument in arguments)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert message in lines[0]
