from __future__ import annotations

import json

import pytest
import yaml

from segclip.models.card import model_card
from segclip.models.checkpoint import load
from segclip.models.export_folder import add_to_card, export

FIELDS = {
    "run": "tiny",
    "steps": 7,
    "recipe": {"train": {"steps": 7}},
    "data": {"name": "scenes", "manifest_sha256": "00ff"},
    "scores": [{"dataset": "scenes", "protocol": "photo", "miou": 0.4321}],
}


def test_it_tells_recipe_data_and_scores(tiny_config) -> None:
    text = model_card(tiny_config(init_from="ViT-B-16/openai"), FIELDS)
    for part in ("# tiny", "manifest_sha256: 00ff", "train:\n  steps: 7", "| scenes | photo | 43.21 % |"):
        assert part in text
    assert "| started from | ViT-B-16/openai |" in text
    assert "steps: 7" in text.partition("## Further fields")[2]
    metadata = yaml.safe_load(text.split("---")[1])
    assert metadata["model-index"][0]["results"][0]["metrics"] == [{"type": "mean_iou", "value": 0.4321}]


def test_what_is_not_known_is_said_so(tiny_config) -> None:
    text = model_card(tiny_config(), {})
    assert text.count("Not recorded.") == 3
    assert "model-index" not in text
    assert "| started from | random values |" in text


def test_scores_are_added_after_the_export(tiny_model, tmp_path) -> None:
    folder = export(tiny_model(), tmp_path, {"run": "tiny"})
    add_to_card(folder, {"scores": FIELDS["scores"]})
    assert json.loads((folder / "config.json").read_text())["card"] == {
        "run": "tiny",
        "scores": FIELDS["scores"],
    }
    assert "43.21 %" in (folder / "README.md").read_text()
    again = export(load(folder), tmp_path / "again")
    assert (again / "README.md").read_text() == (folder / "README.md").read_text()
    with pytest.raises(FileNotFoundError, match="no export folder"):
        add_to_card(tmp_path / "nothing", {})
