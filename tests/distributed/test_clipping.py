"""The gradient is clipped by the norm of the whole of it: over all groups, ranks and pieces that ZeRO makes of it.

With eps far above the gradient, Adam's first step is the gradient times lr / eps, so weights tell what was clipped.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from segclip.models.segclip import SegCLIP
from segclip.trainer.config import load_run_config
from tests.ranks import complete

pytestmark = pytest.mark.slow
WORKER = Path(__file__).with_name("train_variants.py")
CLIP = 0.125
SETTINGS = [
    "train.steps=1", "optimizer.lr=100", "optimizer.eps=100", "optimizer.weight_decay=0", "schedule.kind=constant",
    "schedule.warmup=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def updates(config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """What one step added to the weights, as one vector a run."""
    root = tmp_path_factory.mktemp("clipping")
    two = {f"two{stage}": [f"zero.stage={stage}", f"train.gradient_clip={CLIP}"] for stage in range(4)}
    two["unclipped"] = ["zero.stage=2", "train.gradient_clip=0"]
    for ranks, runs in ((2, two), (1, {"one": ["zero.stage=0", f"train.gradient_clip={CLIP}"]})):
        words = ["::".join([f"{root}/{name}", *SETTINGS, *overrides]) for name, overrides in runs.items()]
        complete(WORKER, config_file, *words, ranks=ranks)
    config = load_run_config(config_file)
    torch.manual_seed(config.seed)
    start = SegCLIP(config.model).state_dict()
    found = {}
    for name in (*two, "one"):
        end = load_file(root / name / "export" / "model.safetensors")
        found[name] = torch.cat([(end[key] - start[key]).flatten().double() for key in sorted(start)])
    return found


def test_the_clip_is_needed(updates: dict[str, Tensor]) -> None:
    assert updates["unclipped"].norm() > 4 * CLIP


@pytest.mark.parametrize("name", ["two0", "two1", "two2", "two3", "one"])
def test_its_norm_is_the_clip(updates: dict[str, Tensor], name: str) -> None:
    assert float(updates[name].norm()) == pytest.approx(CLIP, rel=2e-3)


@pytest.mark.parametrize("name", ["two1", "two2", "two3", "one"])
def test_the_same_gradient_is_left_at_every_stage_and_on_one_rank(
    updates: dict[str, Tensor], name: str
) -> None:
    assert (updates[name] - updates["two0"]).norm() < 1e-3 * CLIP
