"""What a checkpoint is in pieces for, told from its files alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from segclip.trainer.checkpoints.other_ranks import (
    check_stage,
    count_pieces,
    remove_joined,
    written_by_others,
)


def written(folder: Path, stage: int, ranks: int, prefix: str = "") -> Path:
    """Names as DeepSpeed 0.19 gives them."""
    folder.mkdir()
    names = ["mp_rank_00_model_states.pt"]
    if stage == 3:
        names = [f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt" for rank in range(ranks)]
    if stage > 0:
        names += [f"{prefix}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(ranks)]
    for name in names:
        (folder / name).touch()
    return folder


@pytest.mark.parametrize("prefix", ["", "bf16_"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_pieces_tell_the_ranks_that_wrote_them(tmp_path: Path, stage: int, prefix: str) -> None:
    checkpoint = written(tmp_path / "step-00000001", stage, 3, prefix)
    assert count_pieces(checkpoint) == 3
    assert [written_by_others(checkpoint, ranks) for ranks in (1, 2, 3, 4)] == [True, True, False, True]


def test_without_zero_there_are_no_pieces(tmp_path: Path) -> None:
    checkpoint = written(tmp_path / "step-00000001", 0, 3)
    assert not written_by_others(checkpoint, 2)


@pytest.mark.parametrize(("stage", "allowed"), [(0, {0}), (1, {1, 2}), (2, {1, 2}), (3, {3})])
def test_another_way_of_cutting_is_refused(tmp_path: Path, stage: int, allowed: set[int]) -> None:
    checkpoint = written(tmp_path / "step-00000001", stage, 2, "bf16_")
    for now in range(4):
        if now in allowed:
            check_stage(checkpoint, now)
        else:
            with pytest.raises(ValueError, match=rf"zero.stage is {now}, but .* was written at stage"):
                check_stage(checkpoint, now)


def test_what_an_interrupted_load_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / ".joined" / "step-00000001" / "zero"
    left.mkdir(parents=True)
    kept = written(tmp_path / "step-00000001", 1, 2)
    remove_joined(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [kept.name]
    remove_joined(tmp_path)
