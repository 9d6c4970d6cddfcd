"""What a run goes on from, when its own checkpoints are damaged and a store has copies."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from segclip.rank_errors import RankError
from segclip.trainer.checkpoints.retention import Retention
from segclip.trainer.checkpoints.store import newest, send
from segclip.trainer.checkpoints.upload import restored
from segclip.trainer.distributed import Ranks
from tests.trainer.checkpoints.checkpoint_files import flip_bit, run_config, write_checkpoint

pytestmark = pytest.mark.slow
WEIGHTS = "mp_rank_00_model_states.pt"


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Ranks(0, 1, torch.device("cpu"))
    dist.destroy_process_group()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def damage(folder: Path) -> None:
    """Change one byte of a checkpoint."""
    flip_bit(folder / WEIGHTS)


def test_damaged_ones_are_replaced_by_those_of_the_store(tmp_path: Path, store: Path, ranks: Ranks) -> None:
    """The one of step 6 by itself; that of step 9, which the store does not have, is out of the way."""
    run_dir = tmp_path / "run"
    folders = [write_checkpoint(run_dir, step) for step in (3, 6)]
    send(run_dir, store.as_uri(), Retention(keep_last=10))
    intact = (folders[1] / WEIGHTS).read_bytes()
    for folder in [*folders, write_checkpoint(run_dir, 9)]:
        damage(folder)
    assert restored(run_config(run_dir, store), ranks) == folders[1]
    assert (folders[1] / WEIGHTS).read_bytes() == intact
    assert sorted(path.name for path in folders[1].parent.iterdir()) == [
        ".damaged-step-00000003",
        ".damaged-step-00000006",
        ".damaged-step-00000009",
        "step-00000006",
    ]
    assert restored(run_config(run_dir, store), ranks) == folders[1]


@pytest.mark.parametrize("there", ["nothing", "damaged"])
def test_no_run_begins_anew_where_all_are_damaged(
    tmp_path: Path, store: Path, ranks: Ranks, there: str
) -> None:
    """However often it is started."""
    run_dir = tmp_path / "run"
    folder = write_checkpoint(run_dir, 6)
    if there == "damaged":
        send(run_dir, store.as_uri(), Retention())
        damage(store / folder.name)
    damage(folder)
    words = rf"no checkpoint of {run_dir} or at {store.as_uri()} is intact: {folder}/{WEIGHTS} has sha256 \w+"
    for _ in range(2):
        with pytest.raises(RankError, match=words) as caught:
            restored(run_config(run_dir, store), ranks)
        assert (f"{store.as_uri()}/{folder.name}/{WEIGHTS} has sha256" in str(caught.value)) == (
            there == "damaged"
        )
        assert folder.is_dir()
    assert newest(store.as_uri()) == (folder.name if there == "damaged" else None)


def test_an_intact_one_here_is_taken_without_the_store(tmp_path: Path, ranks: Ranks) -> None:
    run_dir = tmp_path / "run"
    folder = write_checkpoint(run_dir, 3)
    damage(write_checkpoint(run_dir, 6))
    assert restored(run_config(run_dir, None), ranks) == folder
    assert not (run_dir / "checkpoints" / "step-00000006").exists()
    damage(folder)
    with pytest.raises(RankError, match=rf"no checkpoint of {run_dir} is intact"):
        restored(run_config(run_dir, None), ranks)
    shutil.rmtree(run_dir)
    assert restored(run_config(run_dir, None), ranks) is None
