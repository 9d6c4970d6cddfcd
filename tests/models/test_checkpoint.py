from __future__ import annotations

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from segclip.models.checkpoint import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    add_to_card,
    export,
    export_released,
    infer_config,
    load,
)
from segclip.models.names import to_released
from segclip.models.segclip import SegCLIP
from tests.small_disk import small_disk

# Sizes that a released checkpoint can tell: text heads of width 64, eight decoder heads, full context.
RELEASED = {
    "vision_width": 64,
    "text_width": 64,
    "text_heads": 1,
    "decoder_heads": 8,
    "text_decoder_heads": 8,
    "center_init_std": 0.02,
}


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model()


@pytest.fixture
def folder(model, tmp_path):
    return export(model, tmp_path / "run" / "export", {"recipe": "tiny"})


@pytest.fixture(scope="module")
def released(tiny_model):
    return tiny_model(**RELEASED)


def same(one, other) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_export_and_load(model, folder) -> None:
    loaded = load(folder)
    assert same(loaded, model)
    assert loaded.config == model.config
    assert not loaded.training
    content = json.loads((folder / CONFIG_FILE).read_text())
    assert content["card"] == {"recipe": "tiny"}


def test_load_takes_the_folder_of_a_run(model, tmp_path) -> None:
    export(model, tmp_path / "run" / "export")
    assert same(load(tmp_path / "run"), model)
    with pytest.raises(
        FileNotFoundError, match=r"no export folder: it has no model\.safetensors; training writes one"
    ):
        load(tmp_path)


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
    assert same(loaded, model)
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


@pytest.mark.parametrize("text_reconstruction", [False, True])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: t,
        lambda t: {"model_state_dict": t, "epoch": 3},
        lambda t: {f"module.{k}": v for k, v in t.items()},
    ],
)
def test_released_checkpoints(tiny_model, tmp_path, wrap, text_reconstruction) -> None:
    model = tiny_model(text_reconstruction=text_reconstruction, **RELEASED)
    path = tmp_path / "segclip.bin"
    torch.save(wrap(to_released(model.state_dict())), path)
    loaded = load(path)
    assert same(loaded, model)
    assert loaded.config == model.config


def test_missing_and_unexpected_parameters_are_listed(released, tmp_path) -> None:
    tensors = to_released(released.state_dict())
    del tensors["clip.visual.ln_post.bias"]
    tensors["clip.visual.extra"] = torch.zeros(1)
    path = tmp_path / "segclip.bin"
    torch.save(tensors, path)
    with pytest.raises(
        ValueError, match=r"1 missing: vision\.ln_post\.bias; 1 unexpected: clip\.visual\.extra; strict=False"
    ):
        load(path)
    loaded = load(path, strict=False)
    assert torch.equal(loaded.vision.ln_post.weight, released.vision.ln_post.weight)


@pytest.mark.parametrize("strict", [True, False])
def test_other_shapes_are_never_taken(folder, strict) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    tensors["vision.projection"] = torch.zeros(3, 16)
    save_file(tensors, folder / WEIGHTS_FILE)
    with pytest.raises(ValueError, match=r"vision\.projection is \[3, 16\], the network has \[32, 16\]"):
        load(folder, strict=strict)


def test_a_file_with_code_is_not_run(tmp_path) -> None:
    marker = tmp_path / "ran"

    class Payload:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    for name, dump in (
        ("a.bin", lambda f: torch.save({"clip.logit_scale": Payload()}, f)),
        ("b.bin", lambda f: pickle.dump(Payload(), f, protocol=2)),
    ):
        with open(tmp_path / name, "wb") as file:
            dump(file)
        with pytest.raises(ValueError, match="plain tensors"):
            load(tmp_path / name)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("write", "error", "message"),
    [
        (lambda p: None, FileNotFoundError, "no checkpoint at"),
        (lambda p: p.mkdir(), FileNotFoundError, "has no model.safetensors"),
        (lambda p: p.write_bytes(b""), ValueError, "not a readable checkpoint of plain tensors"),
        (
            lambda p: p.write_bytes(b"no checkpoint at all"),
            ValueError,
            "not a readable checkpoint of plain tensors",
        ),
        (lambda p: torch.save([1, 2], p), ValueError, "holds a list"),
        (
            lambda p: torch.save({"weight": torch.zeros(1)}, p),
            ValueError,
            "no SegCLIP checkpoint: it holds weight",
        ),
        (
            lambda p: torch.save({"clip.logit_scale": torch.zeros(())}, p),
            ValueError,
            r"lacks clip\.visual\.conv1\.weight",
        ),
    ],
)
def test_what_is_no_checkpoint(tmp_path, write, error, message) -> None:
    write(tmp_path / "x")
    with pytest.raises(error, match=message):
        load(tmp_path / "x")


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


def test_positions_that_are_no_square(released) -> None:
    tensors = to_released(released.state_dict())
    tensors["clip.visual.positional_embedding"] = torch.zeros(13, 64)
    with pytest.raises(ValueError, match="12 patches, which is not a square"):
        infer_config(tensors)
