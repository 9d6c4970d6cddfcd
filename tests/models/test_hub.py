from __future__ import annotations

import json

import huggingface_hub.constants
import pytest
import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin

from segclip.console import UserError
from segclip.models.checkpoint import load
from segclip.models.export_folder import export
from segclip.models.segclip import SegCLIP


def same(one, other) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_saved_and_exported_folders_are_the_same(tiny_model, tmp_path) -> None:
    model = tiny_model()
    model.card = {"run": "tiny", "data": {"manifest_sha256": "00ff"}}
    model.save_pretrained(tmp_path / "saved")
    export(model, tmp_path / "exported")
    saved, exported = files(tmp_path / "saved"), files(tmp_path / "exported")
    assert saved.keys() == {"model.safetensors", "config.json", "README.md"}
    assert saved == exported


@pytest.mark.parametrize("write", [lambda m, f: m.save_pretrained(f), export])
def test_each_opens_what_the_other_wrote(tiny_model, tmp_path, write) -> None:
    model = tiny_model(quick_gelu=False)
    model.card = {"run": "tiny"}
    write(model, tmp_path / "x")
    for opened in (load(tmp_path / "x"), SegCLIP.from_pretrained(tmp_path / "x")):
        assert type(opened) is SegCLIP
        assert isinstance(opened, PyTorchModelHubMixin)
        assert same(opened, model)
        assert opened.config == model.config
        assert opened.card == {"run": "tiny"}
        assert not opened.training


def test_init_from_is_remembered_but_not_loaded_again(tiny_model, tiny_config, tmp_path) -> None:
    model = SegCLIP(tiny_config(init_from="ViT-B-16/openai"), load_init=False)
    model.save_pretrained(tmp_path / "x")
    opened = SegCLIP.from_pretrained(tmp_path / "x")
    assert same(opened, model)
    assert opened.config.init_from == "ViT-B-16/openai"


def test_a_card_written_by_hand_is_kept(tiny_model, tmp_path) -> None:
    (tmp_path / "README.md").write_text("mine")
    tiny_model().save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_the_card_is_valid_metadata(tiny_model, tmp_path) -> None:
    model = tiny_model()
    model.card = {"run": "tiny", "scores": [{"dataset": "scenes", "protocol": "scenes", "miou": 0.5}]}
    model.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "segclip"
    assert card.data.pipeline_tag == "image-segmentation"
    assert card.data.model_name == "tiny"
    assert card.data.eval_results[0].metric_value == 0.5
    assert str(model.generate_model_card()) == str(card)


def test_strictness_is_that_of_load(tiny_model, tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    tiny_model().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["decoder.mask_token"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 missing: decoder\.mask_token"):
        SegCLIP.from_pretrained(tmp_path)
    assert SegCLIP.from_pretrained(tmp_path, strict=False).config == tiny_model().config
    with pytest.raises(ValueError, match="takes no centers"):
        SegCLIP.from_pretrained(tmp_path, centers=3)


@pytest.mark.parametrize("name", ["runs/nothing/here", "./nothing", "/nothing/here", "nothing", "a b/c"])
def test_no_folder_and_no_repository(name) -> None:
    with pytest.raises(FileNotFoundError, match="no export folder at"):
        SegCLIP.from_pretrained(name)


def test_a_repository_that_can_not_be_reached(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="the repository some/network could not be read from the hub"):
        SegCLIP.from_pretrained("some/network", cache_dir=tmp_path)


def test_a_repository_in_the_cache(tiny_model, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    model = tiny_model()
    commit = "0" * 40
    repository = tmp_path / "models--some--network"
    model.save_pretrained(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    assert same(SegCLIP.from_pretrained("some/network", cache_dir=tmp_path), model)


def test_a_folder_without_weights(tiny_model, tmp_path) -> None:
    tiny_model().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors"):
        SegCLIP.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model": {"centres": 8}}))
    with pytest.raises((ValueError, FileNotFoundError)):
        SegCLIP.from_pretrained(tmp_path)


def test_a_network_can_still_be_copied(tiny_model) -> None:
    import copy
    import io

    model = tiny_model()
    assert same(copy.deepcopy(model), model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert same(torch.load(file, weights_only=False), model)
