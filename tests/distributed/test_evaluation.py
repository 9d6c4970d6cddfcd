"""Scoring on real ranks: shared by all, the same numbers as one process, while training and at the end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from segclip.data_pipelines.scenes.sets import SceneSet, write_scene_voc
from segclip.eval import run
from segclip.eval.datasets.dataset import open_dataset
from segclip.eval.evaluate import evaluate
from segclip.eval.protocol import load_protocol
from segclip.eval.reports.pictures import spread
from segclip.eval.weights import load_model, weights_sha256
from segclip.trainer.checkpoints.train_state import read_state
from segclip.trainer.export_cli import open_checkpoint
from tests.ranks import complete
from tests.run_files import metrics

pytestmark = pytest.mark.slow
WORKER = Path(__file__).with_name("train_variants.py")


@pytest.fixture(scope="module")
def runs(config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps on two ranks at two ZeRO stages, scored every two steps; 11 images, 5 of them while training."""
    root = tmp_path_factory.mktemp("runs")
    write_scene_voc(root / "scenes", SceneSet(11, 8, size=48))
    scored = (
        f"evaluation={{dataset: scenes, data_root: {root}/scenes, protocol: scenes, every: 2, images: 5}}"
        "::checkpoint={every: 100, keep_last: 1}::train.look_every=3"
    )
    variants = [f"{root}/zero{stage}::zero.stage={stage}::{scored}" for stage in (1, 3)]
    variants.append(f"{root}/blind::train.look_every=0")
    (root / "told").write_text(complete(WORKER, config_file, *variants))
    return root


@pytest.mark.parametrize("name", ["zero1", "zero3"])
def test_the_end_is_scored_as_by_one_process(runs: Path, name: str) -> None:
    found = json.loads((runs / name / "evaluation" / "result.json").read_text())
    dataset, protocol = open_dataset("scenes", runs / "scenes"), load_protocol("scenes")
    alone = evaluate(open_checkpoint(runs / name), dataset, protocol).as_dict()
    for field in ("miou", "accuracy", "confusion", "per_image", "images", "classes", "weights_sha256"):
        assert found[field] == json.loads(json.dumps(alone[field])), field
    assert found["images"] == 11
    assert json.loads((runs / name / "summary.json").read_text())["miou"] == alone["miou"]


@pytest.mark.parametrize("name", ["zero1", "zero3"])
def test_the_best_checkpoint_is_kept_and_scores_what_it_says(runs: Path, name: str) -> None:
    folder = runs / name / "checkpoints"
    best = read_state(folder / "step-00000006").best
    assert best is not None
    assert best.step in (2, 4)
    assert (folder / "best").read_text() == f"step-{best.step:08d}\n"
    assert sorted(path.name for path in folder.glob("step-*")) == [f"step-{best.step:08d}", "step-00000006"]
    dataset = open_dataset("scenes", runs / "scenes")
    dataset = dataset.pick(spread(len(dataset), 5))
    with torch.inference_mode():
        alone = evaluate(open_checkpoint(folder / f"step-{best.step:08d}"), dataset, load_protocol("scenes"))
    assert alone.miou == pytest.approx(best.miou, abs=1e-9)


def test_a_checkpoint_in_pieces_is_scored_as_the_run_was(runs: Path, tmp_path: Path) -> None:
    """By two ranks of `segclip-eval`, of which the first joins the pieces; a run means its newest checkpoint."""
    alone = tmp_path / "run"
    alone.mkdir()
    (alone / "checkpoints").symlink_to(runs / "zero3" / "checkpoints")
    asked = ["--dataset", "scenes", "--data-root", runs / "scenes", "--pictures", 0, "--device", "cpu"]
    complete(Path(run.__file__), "--checkpoint", alone, "--out", tmp_path / "out", *asked, seconds=300)
    expected = json.loads((runs / "zero3" / "evaluation" / "result.json").read_text())
    found = json.loads((tmp_path / "out" / "result.json").read_text())
    for field in (
        "miou",
        "confusion",
        "intervals",
        "data_sha256",
        "protocol_sha256",
        "weights_sha256",
        "counts",
    ):
        assert found[field] == expected[field], field
    assert found["checkpoint"] == str(alone / "checkpoints" / "step-00000006")
    assert (found["ranks"], expected["ranks"]) == (2, 2)


@pytest.mark.parametrize("name", ["zero1", "zero3"])
def test_pieces_are_joined_to_the_weights_of_the_export(runs: Path, name: str) -> None:
    loaded = load_model(runs / name / "checkpoints" / "step-00000006")
    assert weights_sha256(loaded.model) == weights_sha256(open_checkpoint(runs / name))
    assert loaded.card == {"protocol": "scenes"}


def test_scores_are_told_while_training(runs: Path) -> None:
    told = (runs / "told").read_text()
    for step in (2, 4):
        assert told.count(f"step {step}: mIoU") == 2
    assert "step 6: " not in told


@pytest.mark.parametrize("name", ["zero1", "zero3"])
def test_a_closer_look_disturbs_nothing(runs: Path, name: str) -> None:
    """Pictures are there at every stage, and the steps after a look go on like those of a run that never looks."""
    pictures = sorted(path.name for path in (runs / name / "assignments").iterdir())
    assert pictures == ["step-00000003.png", "step-00000006.png"]
    for seen, blind in zip(metrics(runs / name), metrics(runs / "blind"), strict=True):
        assert seen["loss/total"] == pytest.approx(blind["loss/total"], rel=1e-5)
        assert 0 < seen["centers/entropy"] <= 1
        assert seen["centers/dead"] in range(4)
        parts = [seen[f"time/{part}"] for part in ("forward", "backward", "optimizer")]
        assert all(part > 0 for part in parts)
        assert sum(parts) <= seen["step_seconds"]
