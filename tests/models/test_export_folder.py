from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from segclip.models.checkpoint import load
from segclip.models.export_folder import add_to_card, export
from segclip.models.files import CONFIG_FILE, WEIGHTS_FILE
from segclip.models.released import export_released
from segclip.models.segclip import SegCLIP
from tests.models.conftest import same_weights
from tests.small_disk import small_disk


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model()


@pytest.fixture
def folder(model, tmp_path):
    return export(model, tmp_path / "export", {"recipe": "tiny"})


def test_export_and_load(model, folder) -> None:
    loaded = load(folder)
    assert same_weights(loaded, model)
    assert loaded.config == model.config
    assert not loaded.training
    content = json.loads((folder / CONFIG_FILE).read_text())
    assert content["card"] == {"recipe": "tiny"}


def test_whoever_may_read_the_configuration_may_read_the_weights(model, folder) -> None:
    (folder / CONFIG_FILE).chmod(0o644)
    export(model, folder)
    assert (folder / WEIGHTS_FILE).stat().st_mode == (folder / CONFIG_FILE).stat().st_mode


def _export_and_score(model, folder) -> None:
    export(model, folder)
    # As an export that tells the place, which earlier versions wrote.
    content = json.loads((folder / CONFIG_FILE).read_text())
    content["model"]["init_from"] = model.config.init_from
    (folder / CONFIG_FILE).write_text(json.dumps(content))
    add_to_card(folder, {"scores": [{"dataset": "scenes", "protocol": "photo", "miou": 0.5}]})


@pytest.mark.parametrize(
    "write",
    [
        export,
        _export_and_score,
        lambda model, folder: model.save_pretrained(folder),
        lambda model, folder: export_released(model, folder / "segclip.bin"),
    ],
    ids=["export", "scored", "save_pretrained", "original"],
)
def test_the_place_of_clips_weights_is_not_published(tiny_config, tmp_path, write) -> None:
    model = SegCLIP(tiny_config(init_from="local-dir:/home/somebody/clip"), load_init=False)
    write(model, tmp_path)
    for file in tmp_path.iterdir():
        assert b"somebody" not in file.read_bytes(), file.name
    released = tmp_path / "segclip.bin"
    loaded = load(released if released.is_file() else tmp_path)
    assert same_weights(loaded, model)
    assert loaded.config == model.config.model_copy(update={"init_from": "local-dir:clip"})
    assert model.config.init_from == "local-dir:/home/somebody/clip"


def test_a_full_disk_is_named_with_the_bytes_wanted(model) -> None:
    with small_disk(64) as disk, pytest.raises(OSError, match=r"space") as caught:
        export(model, disk / "export")
    assert str(caught.value).startswith(f"{disk}/export/model.safetensors cannot be written: ")
    assert " bytes wanted, " in str(caught.value)


def test_bfloat16_weights_keep_their_bits(tiny_model, tmp_path) -> None:
    model = tiny_model().bfloat16()
    stored = load_file(export(model, tmp_path) / WEIGHTS_FILE)
    assert all(tensor.dtype == torch.bfloat16 for tensor in stored.values())
    loaded = load(tmp_path)
    assert all(torch.equal(loaded.state_dict()[name], tensor.float()) for name, tensor in stored.items())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not the configuration"),
        ('{"modle": {}}', "not the configuration"),
        ('{"model": {"centres": 8}}', "centres"),
        ("[]", "not the configuration"),
    ],
)
def test_broken_configuration(folder, content, message) -> None:
    (folder / CONFIG_FILE).write_text(content)
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_broken_weights(folder) -> None:
    (folder / WEIGHTS_FILE).write_bytes(b"12")
    with pytest.raises(ValueError, match="not a safetensors file"):
        load(folder)
    with pytest.raises(ValueError, match="give the folder"):
        load(folder / WEIGHTS_FILE)
