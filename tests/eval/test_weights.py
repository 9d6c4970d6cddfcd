from __future__ import annotations

import pytest
import torch

from segclip.eval.exports import find_export
from segclip.eval.weights import default_protocol, load_model, pick_device, weights_sha256


def test_an_export_is_found_from_its_run(checkpoint, model) -> None:
    for path in (checkpoint, checkpoint.parent):
        assert find_export(path) == checkpoint
    loaded = load_model(checkpoint.parent)
    assert not loaded.model.training
    assert loaded.path == checkpoint
    assert weights_sha256(loaded.model) == weights_sha256(model)
    assert default_protocol(loaded.card) == "scenes"


def test_default_protocol() -> None:
    assert default_protocol({}) == "photo"
    assert default_protocol({"protocol": "never heard of"}) == "photo"


def test_paths_that_are_no_checkpoint(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"no checkpoint at .*nowhere: there is no such file or folder"):
        find_export(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is no checkpoint: neither it nor"):
        load_model(tmp_path)


def test_devices() -> None:
    assert pick_device("cpu").type == "cpu"
    assert pick_device("auto").type in ("cpu", "cuda")
    with pytest.raises(ValueError, match="unknown device 'gpu'"):
        pick_device("gpu")
    with pytest.raises(ValueError, match="there is no device 'cuda:99'"):
        pick_device("cuda:99")
    with pytest.raises(ValueError, match="not supported"):
        pick_device("meta")


def test_the_hash_sees_names_types_and_values() -> None:
    first = torch.nn.Linear(2, 2)
    second = torch.nn.Linear(2, 2)
    second.load_state_dict(first.state_dict())
    assert weights_sha256(first) == weights_sha256(second)
    assert weights_sha256(first) != weights_sha256(second.bfloat16())
    renamed = torch.nn.Module()
    renamed.bias, renamed.heft = first.bias, first.weight
    assert weights_sha256(renamed) != weights_sha256(first)
