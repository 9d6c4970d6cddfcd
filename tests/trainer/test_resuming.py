"""What may be continued and what is another run."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from segclip.trainer.config import RunConfig, load_run_config, save_run_config
from segclip.trainer.resuming import check_resumable, check_same_data

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


BEFORE = [
    "train.steps=100", "seed=0", "model.centers=8", "train.global_batch=128", "data.shards=here", "data.lanes=8",
    "data.shuffle_block=500",
]  # fmt: skip


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """What a run of the quickstart's configuration has left after step 40, as far as resuming is decided by it."""
    folder = tmp_path / "step-00000040"
    folder.mkdir()
    save_run_config(changed(), folder / "config.yaml")
    return folder


def changed(*overrides: str) -> RunConfig:
    return load_run_config(QUICKSTART, [*BEFORE, *overrides])


@pytest.mark.parametrize(
    "override",
    [
        "train.steps=40",
        "optimizer.lr=1e-5",
        "data.workers=0",
        "data.shards=moved",
        "zero.stage=3",
        "loss.superpixel_kl=1",
        "train.micro_batch=16",
    ],
)
def test_what_may_change_in_a_run(checkpoint: Path, override: str) -> None:
    check_resumable(changed(override), checkpoint)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("model.centers=6", "model.centers: 8 -> 6"),
        ("seed=7", "seed: 0 -> 7"),
        ("train.global_batch=64", "train.global_batch: 128 -> 64"),
        ("data.lanes=16", "data.lanes: 8 -> 16"),
        ("data.shuffle_block=9", "data.shuffle_block: 500 -> 9"),
        ("data.epoch_end=drop", "data.epoch_end: 'join' -> 'drop'"),
    ],
)
def test_what_makes_it_another_run(checkpoint: Path, override: str, told: str) -> None:
    with pytest.raises(ValueError) as refused:
        check_resumable(changed(override), checkpoint)
    assert str(refused.value) == (
        f"{checkpoint} belongs to a run with other settings ({told}); undo the change to resume, or give another "
        "run_dir to start anew"
    )


def test_every_change_is_told(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.centers: 8 -> 6; seed: 0 -> 7"):
        check_resumable(changed("seed=7", "model.centers=6"), checkpoint)


def test_fewer_steps_than_are_made(checkpoint: Path) -> None:
    with pytest.raises(ValueError) as refused:
        check_resumable(changed("train.steps=39"), checkpoint)
    assert str(refused.value) == (
        f"train.steps is 39, but {checkpoint} has made 40 steps already; give more steps to go on, or another run_dir "
        "to start anew"
    )


def test_a_setting_that_is_newer_than_the_checkpoint_was_at_its_default(checkpoint: Path) -> None:
    file = checkpoint / "config.yaml"
    tree = yaml.safe_load(file.read_text())
    assert tree["model"].pop("text_decoder_depth") == 3
    assert tree["data"].pop("epoch_end") == "join"
    file.write_text(yaml.safe_dump(tree))
    check_resumable(changed(), checkpoint)
    with pytest.raises(ValueError, match=r"model\.text_decoder_depth: 3 -> 2"):
        check_resumable(changed("model.text_decoder_depth=2"), checkpoint)


COCO = {"name": "coco", "samples": 9, "manifest_sha256": "a" * 64}
CC3M = {"name": "cc3m", "samples": 90, "manifest_sha256": "b" * 64}


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (COCO, {**COCO, "name": "moved"}),
        (None, COCO),
        (COCO, {"sets": [COCO]}),
        ({"sets": [COCO, {**CC3M, "weight": 3.0}]}, {"sets": [COCO, {**CC3M, "weight": 3.0, "name": "x"}]}),
    ],
)
def test_the_same_shards_under_another_name(before: dict[str, object] | None, now: dict[str, object]) -> None:
    check_same_data(before, now, Path("step-00000040"))


@pytest.mark.parametrize(
    "now",
    [
        CC3M,
        {"sets": [COCO, CC3M]},
        {"sets": [{**COCO, "weight": 1.0}]},
    ],
)
def test_other_shards_are_refused(now: dict[str, object]) -> None:
    with pytest.raises(
        ValueError, match=r"step-00000040 was trained on other shards \(coco: 9 samples, manifest a{12}\)"
    ):
        check_same_data(COCO, now, Path("step-00000040"))


def test_the_order_of_joined_sets_matters() -> None:
    """Shards are numbered through all sets."""
    with pytest.raises(ValueError, match="other shards"):
        check_same_data({"sets": [COCO, CC3M]}, {"sets": [CC3M, COCO]}, Path("step-00000040"))
