"""A closer look at a small network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from segclip.data_pipelines.loader import build_loader
from segclip.data_pipelines.samples import Batch
from segclip.data_pipelines.scenes.sets import SceneSet, write_scene_shards
from segclip.models.segclip import SegCLIP
from segclip.trainer.config import RunConfig, load_run_config
from segclip.trainer.insight import assignment_picture, gradient_norms

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, SegCLIP, Batch]:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_scene_shards(str(folder), SceneSet(16, 3, size=64), per_shard=8, processes=1)
    config = load_run_config(QUICKSTART, [f"data.shards={folder}", "data.workers=0", "data.lanes=2"])
    torch.manual_seed(0)
    model = SegCLIP(config.model)
    stream = build_loader(
        config.data, patch_size=config.model.patch_size, rank=0, world_size=1, batch_size=8, seed=0
    )
    batch = next(iter(stream))
    stream.close()
    return config, model, batch


def test_the_parts_make_up_the_whole(seen: tuple[RunConfig, SegCLIP, Batch]) -> None:
    config, model, batch = seen
    norms = gradient_norms(model, batch, config)
    losses = {name: value for name, value in norms.items() if name.startswith("gradient/loss/")}
    assert set(losses) == {
        f"gradient/loss/{name}" for name in ("contrastive", "superpixel_kl", "reconstruction")
    }
    assert all(value > 0 for value in losses.values())
    groups = [value for name, value in norms.items() if name.startswith("gradient/group/")]
    whole = float(np.sqrt(np.sum(np.square(groups))))
    # The whole is the sum of the parts, which lie neither all in one direction nor against each other.
    assert whole <= sum(losses.values()) * (1 + 1e-5)
    assert whole >= max(losses.values()) - sum(sorted(losses.values())[:-1])
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.training


def test_a_loss_counts_with_its_weight(seen: tuple[RunConfig, SegCLIP, Batch]) -> None:
    config, model, batch = seen
    before = gradient_norms(model, batch, config)
    more = config.model_copy(
        update={"loss": config.loss.model_copy(update={"superpixel_kl": 0.0, "reconstruction": 3.0})}
    )
    after = gradient_norms(model, batch, more)
    assert "gradient/loss/superpixel_kl" not in after
    assert after["gradient/loss/reconstruction"] == pytest.approx(
        3 / config.loss.reconstruction * before["gradient/loss/reconstruction"], rel=1e-4
    )


def test_a_picture_shows_images_above_their_centers(seen: tuple[RunConfig, SegCLIP, Batch]) -> None:
    _, model, batch = seen
    page = np.asarray(assignment_picture(model.eval(), batch.images[:3], side=64))
    assert page.shape == (2 * 72 + 8, 3 * 72 + 8, 3)
    image = batch.images[1].permute(1, 2, 0).numpy().astype(float)
    upper, lower = page[8:72, 80:144].astype(float), page[80:144, 80:144].astype(float)
    assert abs(upper.mean((0, 1)) - image.mean((0, 1))).max() < 8
    assert abs(lower - upper).mean() > 10
