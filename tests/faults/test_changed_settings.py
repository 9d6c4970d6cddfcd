"""Settings that change between a checkpoint and the run that goes on from it: told, applied where they may, refused
where not. Real ranks, and a look into their optimisers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from segclip.data_pipelines.scenes.sets import SceneSet, write_scene_shards
from tests.faults.conftest import Run
from tests.ranks import start

pytestmark = pytest.mark.slow
LOOK = Path(__file__).with_name("optimizer_of_ranks.py")
# A rate that is the same at each step, so that what is seen is what is set.
BASE = ("schedule.kind=constant", "schedule.warmup=0", "train.steps=2", "checkpoint.every=2")
CHANGES = {
    "train.steps": ("2", "3"),
    "train.gradient_clip": ("1.0", "0.25"),
    "loss.superpixel_kl": ("10.0", "5.0"),
    "optimizer.lr": ("0.001", "0.0005"),
    "optimizer.lower_lr": ("null", "0.0002"),
    "optimizer.weight_decay": ("0.05", "0.3"),
    "optimizer.weight_decay_by_part.new": ("null", "0.2"),
    "optimizer.betas": ("[0.9, 0.98]", "[0.7, 0.8]"),
    "optimizer.eps": ("1e-06", "0.001"),
}
PARTS = {  # base rate and weight decay
    "pretrained": (2e-4, 0.3),
    "pretrained_no_decay": (2e-4, 0.0),
    "text_embeddings_no_decay": (2e-4, 0.0),
    "new": (5e-4, 0.2),
    "new_no_decay": (5e-4, 0.0),
}


def told(text: str) -> list[str]:
    return sorted(line for line in text.splitlines() if "changed since" in line)


def test_the_new_values_are_told_and_hold_in_the_optimiser(config_file: Path, tmp_path: Path) -> None:
    """Without ZeRO, at stages 1 (2 loads as 1 does) and 3, and with another number of ranks; the step that is made with
    them is that of plain torch."""

    def word(folder: str, stage: int, *overrides: str) -> str:
        return "::".join([f"{tmp_path}/{folder}", f"zero.stage={stage}", *BASE, *overrides])

    def train(ranks: int, *words: str) -> str:
        done = start(LOOK, config_file, *words, ranks=ranks).finish(400)
        assert done.returncode == 0, done.stdout[-3000:]
        return done.stdout

    train(2, *(word(f"before-{stage}", stage) for stage in (0, 1, 3)))
    changes = [f"{name}={new}" for name, (_, new) in CHANGES.items()]
    for ranks, stages in ((2, (0, 1, 3)), (1, (1, 3))):
        for stage in stages:
            shutil.copytree(tmp_path / f"before-{stage}", tmp_path / f"{ranks}-{stage}")
        text = train(ranks, *(word(f"{ranks}-{stage}", stage, *changes) for stage in stages))
        # Each difference once, from the first rank alone.
        expected = [
            f"changed since step 2: {name} {old} -> {new} (applied)" for name, (old, new) in CHANGES.items()
        ] * len(stages)
        expected += [
            f'changed since step 2: run_dir "{tmp_path}/before-{stage}" -> "{tmp_path}/{ranks}-{stage}" (applied)'
            for stage in stages
        ]
        assert told(text) == sorted(expected)
        for stage in stages:
            folder = tmp_path / f"{ranks}-{stage}"
            for rank in range(ranks):
                before, after = json.loads((folder / f"optimizer-{rank}.json").read_text())
                assert before["groups"] == after["groups"]
                assert {group.pop("name"): group for group in before["groups"]} == {
                    name: {
                        "lr": rate,
                        "base_lr": rate,
                        "betas": [0.7, 0.8],
                        "eps": 1e-3,
                        "weight_decay": decay,
                    }
                    for name, (rate, decay) in PARTS.items()
                }, (ranks, stage)
                assert before["clip"] == 0.25
                # What training had found is there: two steps, and now a third.
                assert (before["steps"], after["steps"]) == ([2.0], [3.0])
            plain, found = (
                load_file(each / "export" / "model.safetensors") for each in (tmp_path / "2-0", folder)
            )
            for name, value in found.items():
                assert (value - plain[name]).norm() <= 1e-5 * plain[name].norm() + 1e-6, (ranks, stage, name)


def test_all_that_may_not_change_is_refused_by_name(finished: Run) -> None:
    before = finished.checkpoints()
    codes, text = finished(
        "train.global_batch=8", "optimizer.decay_rule=original", "optimizer.frozen=[]", "data.lanes=8",
        "optimizer.lr=5e-4", "train.steps=7",
    )  # fmt: skip
    assert set(codes) == {2}
    (error,) = [line for line in text.splitlines() if "error: " in line]
    assert error == (
        f"error: {finished.folder / 'checkpoints' / before[-1]} belongs to a run with other settings (data.lanes: 4 -> "
        "8; optimizer.decay_rule: 'usual' -> 'original'; optimizer.frozen: ['text.token_embedding'] -> []; "
        "train.global_batch: 16 -> 8); undo the change to resume, or give another run_dir to start anew"
    )
    assert told(text) == []
    assert finished.checkpoints() == before


def test_shards_may_move_and_not_change(finished: Run, shards: Path, tmp_path: Path) -> None:
    moved, other = tmp_path / "moved", tmp_path / "other"
    write_scene_shards(str(other), SceneSet(80, 4, size=48), per_shard=20, processes=1)
    codes, text = finished(f"data.shards={other}", "train.steps=7")
    assert set(codes) == {2}
    (error,) = [line for line in text.splitlines() if "error: " in line]
    assert "step-00000006 was trained on other shards (shards: 80 samples, manifest " in error
    assert told(text) == []
    shutil.copytree(shards, moved)
    codes, text = finished(f"data.shards={moved}", "train.steps=7")
    assert codes == [0, 0], text
    assert f'changed since step 6: data.shards "{shards}" -> "{moved}" (applied)' in told(text)
