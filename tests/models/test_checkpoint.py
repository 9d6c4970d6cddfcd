from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from segclip.models.checkpoint import load
from segclip.models.export_folder import export
from segclip.models.files import WEIGHTS_FILE
from tests.models.conftest import same_weights


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model()


@pytest.fixture
def folder(model, tmp_path):
    return export(model, tmp_path / "run" / "export", {"recipe": "tiny"})


def test_load_takes_the_folder_of_a_run(model, tmp_path) -> None:
    export(model, tmp_path / "run" / "export")
    assert same_weights(load(tmp_path / "run"), model)
    with pytest.raises(
        FileNotFoundError, match=r"no export folder: it has no model\.safetensors; training writes one"
    ):
        load(tmp_path)


@pytest.mark.parametrize("strict", [True, False])
def test_other_shapes_are_never_taken(folder, strict) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    tensors["vision.projection"] = torch.zeros(3, 16)
    save_file(tensors, folder / WEIGHTS_FILE)
    with pytest.raises(ValueError, match=r"vision\.projection is \[3, 16\], the network has \[32, 16\]"):
        load(folder, strict=strict)


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
