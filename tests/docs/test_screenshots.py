"""MLflow's own page on a run of the project's tracker, in a real browser: what users look at is there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from docs.make.screenshots import mlflow_pictures
from segclip.models.config import ModelConfig
from segclip.models.segclip import SegCLIP
from segclip.trainer.insight import assignment_picture
from segclip.trainer.tracking import Tracker, TrackingConfig, tracking_uri

pytestmark = [
    pytest.mark.slow,
    pytest.mark.exhaustive,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

SMALL = ModelConfig(
    image_size=24, patch_size=6, vision_width=32, vision_heads=2, vision_layers=2, first_stage_layers=1, centers=6,
    center_layers=1, embed_dim=16, text_width=16, text_heads=2, text_layers=1, context_length=16, decoder_depth=1,
    decoder_heads=2,
)  # fmt: skip


def test_mlflow_shows_metrics_parameters_and_regions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = TrackingConfig(system_metrics=False, flush_seconds=300)
    tracker = Tracker(config, tmp_path, "a run")
    tracker.parameters({"train.global_batch": 128, "model.centers": 8})
    for step in range(5):
        tracker.metrics({"loss/total": 5.0 - step, "gradient_norm": 1.0 + step}, step)
    folder = tmp_path / "assignments"
    folder.mkdir()
    images = torch.randint(0, 256, (2, 3, 24, 24), dtype=torch.uint8)
    assignment_picture(SegCLIP(SMALL).eval(), images, side=96).save(folder / "step-00000005.png")
    tracker.artifact(folder / "step-00000005.png", "assignments")
    tracker.finish()
    assert tracker.run_id is not None
    (tmp_path / "pages").mkdir()
    taken = mlflow_pictures(
        tracking_uri(config, tmp_path), tracker.run_id, tmp_path / "pages", metric="loss/total",
        parameter="train.global_batch",
    )  # fmt: skip
    for path in taken:
        with Image.open(path) as picture:
            assert picture.size == (1440, 1300 if path.stem == "mlflow-overview" else 900)
