"""What may be continued and what is another run."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from segclip.trainer.checkpoints.resuming import FIXED, check_resumable, check_same_data
from segclip.trainer.config import RunConfig, flatten, load_run_config, save_run_config

QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart.yaml"


BEFORE = [
    "train.steps=100", "seed=0", "model.centers=8", "train.global_batch=128", "data.shards=here", "data.lanes=8",
    "data.shuffle_block=500", "train.precision=fp32",
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
    ("override", "told"),
    [
        ("train.steps=40", "train.steps 100 -> 40"),
        ("optimizer.lr=1e-5", "optimizer.lr 0.002 -> 1e-05"),
        ("optimizer.betas=[0.8,0.9]", "optimizer.betas [0.9, 0.98] -> [0.8, 0.9]"),
        ("optimizer.eps=1e-8", "optimizer.eps 1e-06 -> 1e-08"),
        ("optimizer.weight_decay_by_part.new=0.2", "optimizer.weight_decay_by_part.new null -> 0.2"),
        ("schedule.kind=wsd", 'schedule.kind "cosine" -> "wsd"'),
        ("data.workers=0", "data.workers 1 -> 0"),
        ("data.shards=moved", 'data.shards "here" -> "moved"'),
        ("data.flip=true", "data.flip false -> true"),
        ("zero.stage=3", "zero.stage 1 -> 3"),
        ("loss.superpixel_kl=1", "loss.superpixel_kl 3.0 -> 1.0"),
        ("train.micro_batch=16", "train.micro_batch null -> 16"),
        ("train.gradient_clip=0.5", "train.gradient_clip 1.0 -> 0.5"),
        ("run_dir=elsewhere", 'run_dir "runs/quickstart/train" -> "elsewhere"'),
    ],
)
def test_what_may_change_in_a_run_is_told(checkpoint: Path, override: str, told: str) -> None:
    assert check_resumable(changed(override), checkpoint) == [f"{told} (applied)"]


def test_what_stays_is_not_told(checkpoint: Path) -> None:
    assert check_resumable(changed(), checkpoint) == []
    assert check_resumable(changed("optimizer.lr=1e-5", "name=x"), checkpoint) == [
        'name "quickstart" -> "x" (applied)',
        "optimizer.lr 0.002 -> 1e-05 (applied)",
    ]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("model.centers=6", "model.centers: 8 -> 6"),
        ("seed=7", "seed: 0 -> 7"),
        ("train.global_batch=64", "train.global_batch: 128 -> 64"),
        ("data.lanes=16", "data.lanes: 8 -> 16"),
        ("data.shuffle_block=9", "data.shuffle_block: 500 -> 9"),
        ("data.epoch_end=drop", "data.epoch_end: 'join' -> 'drop'"),
        ("optimizer.implementation=torch", "optimizer.implementation: 'auto' -> 'torch'"),
        ("zero.offload_optimizer=cpu", "zero.offload_optimizer: 'none' -> 'cpu'"),
        ("optimizer.frozen=[]", "optimizer.frozen: ['text.token_embedding'] -> []"),
        ("optimizer.freeze_layers=0", "optimizer.freeze_layers: None -> 0"),
        ("optimizer.decay_rule=original", "optimizer.decay_rule: 'usual' -> 'original'"),
        ("optimizer.layer_decay=0.9", "optimizer.layer_decay: 1.0 -> 0.9"),
        ("train.precision=bf16", "train.precision: 'fp32' -> 'bf16'"),
    ],
)
def test_what_makes_it_another_run(checkpoint: Path, override: str, told: str) -> None:
    with pytest.raises(ValueError) as refused:
        check_resumable(changed(override), checkpoint)
    assert str(refused.value) == (
        f"{checkpoint} belongs to a run with other settings ({told}); undo the change to resume, or give another "
        "run_dir to start anew"
    )


def test_only_real_settings_are_fixed() -> None:
    names = flatten(changed().model_dump(mode="json"))
    assert [name for name in FIXED if name not in names and name != "model."] == []


def test_another_decay_over_layers_leaves_the_groups(checkpoint: Path) -> None:
    save_run_config(changed("optimizer.layer_decay=0.9"), checkpoint / "config.yaml")
    assert check_resumable(changed("optimizer.layer_decay=0.8"), checkpoint) == [
        "optimizer.layer_decay 0.9 -> 0.8 (applied)"
    ]
    with pytest.raises(ValueError, match=r"optimizer\.layer_decay: 0.9 -> 1.0"):
        check_resumable(changed(), checkpoint)


def test_tf32_keeps_what_fp32_keeps(checkpoint: Path) -> None:
    assert check_resumable(changed("train.precision=tf32"), checkpoint) == [
        'train.precision "fp32" -> "tf32" (applied)'
    ]


def test_what_is_without_effect_says_so(checkpoint: Path) -> None:
    (told,) = check_resumable(changed("train.fp16.initial_scale_power=8"), checkpoint)
    assert told.endswith("-> 8 (without effect: the loss scale goes on from where it is)")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("train", "steps", "many"), "train.steps = 'many'"),
        (("train", "stepz", 3), "unknown key 'train.stepz' (did you mean 'steps'?)"),
        (("optimizer", "lr", None), "optimizer.lr = None"),
    ],
)
def test_the_field_of_a_checkpoint_that_is_wrong_is_named(
    checkpoint: Path, change: tuple[str, str, object], told: str
) -> None:
    file = checkpoint / "config.yaml"
    tree = yaml.safe_load(file.read_text())
    tree[change[0]][change[1]] = change[2]
    file.write_text(yaml.safe_dump(tree))
    with pytest.raises(ValueError) as caught:
        check_resumable(changed(), checkpoint)
    assert str(caught.value).startswith(f"{file}: {told}")
    assert "resume with that version" in str(caught.value)


@pytest.mark.parametrize("content", [b"\xff\xfe\x81", b"a: [", b"", b"- 1"])
def test_a_configuration_that_is_damaged_is_named(checkpoint: Path, content: bytes) -> None:
    (checkpoint / "config.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=r"config.yaml (is not valid YAML|must hold a mapping)"):
        check_resumable(changed(), checkpoint)
    (checkpoint / "config.yaml").unlink()
    with pytest.raises(ValueError, match=r"no configuration file '.*config.yaml'"):
        check_resumable(changed(), checkpoint)


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
