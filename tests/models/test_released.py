from __future__ import annotations

import io
import pickle
from collections import OrderedDict

import pytest
import torch

from segclip.models.checkpoint import load
from segclip.models.files import RELEASED_FILE
from segclip.models.names import to_released
from segclip.models.released import export_released, infer_config
from tests.models.conftest import same_weights

# Sizes that the original's code allows, so that tensors tell the configuration.
ORIGINAL = {"vision_width": 64, "vision_heads": 1, "text_width": 64, "text_heads": 1, "decoder_heads": 8}


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model(vision_layers=12, first_stage_layers=10, center_init_std=0.02, **ORIGINAL).eval()


@pytest.mark.parametrize("text_reconstruction", [False, True])
def test_tensors_tell_the_configuration(tiny_model, tmp_path, text_reconstruction) -> None:
    sizes = {"text_decoder_heads": 8, "center_init_std": 0.02, **ORIGINAL}
    model = tiny_model(text_reconstruction=text_reconstruction, **sizes)
    path = tmp_path / "segclip.bin"
    torch.save(to_released(model.state_dict()), path)
    loaded = load(path)
    assert same_weights(loaded, model)
    assert loaded.config == model.config


def test_positions_that_are_no_square(model) -> None:
    tensors = to_released(model.state_dict())
    tensors["clip.visual.positional_embedding"] = torch.zeros(13, 64)
    with pytest.raises(ValueError, match="12 patches, which is not a square"):
        infer_config(tensors)


def prefixed(prefix, table):
    return {prefix + name: tensor for name, tensor in table.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        OrderedDict,
        lambda t: {"model_state_dict": t, "epoch": 3},
        lambda t: {"state_dict": t},
        lambda t: {"model": t, "epoch": 3},
        lambda t: {"module": t, "global_steps": 3},
        lambda t: {"model": {"state_dict": t}},
        lambda t: {"state_dict": prefixed("module.", t)},
        lambda t: prefixed("_orig_mod.", t),
        lambda t: prefixed("module._orig_mod.", t),
        lambda t: {**t, "epoch": 3, "args": {"lr": 4e-6}},
    ],
)
def test_checkpoints_as_training_loops_write_them(model, tmp_path, wrap) -> None:
    path = tmp_path / "pytorch_model.bin.9"
    torch.save(wrap(to_released(model.state_dict())), path)
    loaded = load(path)
    assert same_weights(loaded, model)
    assert not loaded.training


def test_the_file_of_the_optimiser(tmp_path) -> None:
    path = tmp_path / "pytorch_opt.bin.9"
    weights = torch.nn.Linear(2, 2)
    optimiser = torch.optim.AdamW(weights.parameters())
    torch.save({"epoch": 9, "optimizer_state_dict": optimiser.state_dict(), "loss": 1.0}, path)
    with pytest.raises(ValueError, match=r"state of an optimiser.*give the file of weights"):
        load(path)
    torch.save(optimiser.state_dict(), path)
    with pytest.raises(ValueError, match="state of an optimiser"):
        load(path)


def test_a_shard_of_our_own_training(model, tmp_path) -> None:
    torch.save({"module": model.state_dict()}, tmp_path / "mp_rank_00_model_states.pt")
    with pytest.raises(
        ValueError, match="part of a training checkpoint of this package: give the export folder"
    ):
        load(tmp_path / "mp_rank_00_model_states.pt")


def test_parameters_that_do_not_fit_are_listed(model, tmp_path) -> None:
    tensors = to_released(model.state_dict())
    tensors["clip.visual.ln_pre.bias"] = torch.zeros(3)
    del tensors["vis_mae_decoder.mask_token"]
    tensors["clip.extra"] = torch.zeros(1)
    torch.save({"model": tensors}, tmp_path / "x.bin")
    with pytest.raises(
        ValueError,
        match=r"1 different shapes: vision\.ln_pre\.bias is \[3\], the network has \[64\]; 1 missing: "
        r"decoder\.mask_token; 1 unexpected: clip\.extra",
    ):
        load(tmp_path / "x.bin")
    with pytest.raises(ValueError, match="1 different shapes"):
        load(tmp_path / "x.bin", strict=False)
    tensors["clip.visual.ln_pre.bias"] = torch.ones(64)
    torch.save({"model": tensors}, tmp_path / "x.bin")
    with pytest.raises(
        ValueError, match=r"1 unexpected: clip\.extra; strict=False takes the parameters that fit"
    ):
        load(tmp_path / "x.bin")
    assert torch.equal(load(tmp_path / "x.bin", strict=False).vision.ln_pre.bias, torch.ones(64))


@pytest.mark.parametrize("place", ["metadata", "wrapper", "tensor", "pickle"])
def test_code_anywhere_in_a_checkpoint_is_not_run(model, tmp_path, place) -> None:
    marker = tmp_path / "ran"

    class Payload:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    # Such a pickle does write the file when it is read without care.
    pickle.load(io.BytesIO(pickle.dumps(Payload()))).close()
    assert marker.exists()
    marker.unlink()

    table = OrderedDict(to_released(model.state_dict()))
    if place == "metadata":
        table._metadata = {"": Payload()}
    elif place == "wrapper":
        table = {"state_dict": table, "args": Payload()}
    elif place == "tensor":
        table["clip.logit_scale"] = Payload()
    if place == "pickle":
        (tmp_path / "x.bin").write_bytes(pickle.dumps(Payload(), protocol=2))
    else:
        torch.save(table, tmp_path / "x.bin")
    with pytest.raises(ValueError, match="not a readable checkpoint of plain tensors"):
        load(tmp_path / "x.bin")
    assert not marker.exists()


def test_export_under_the_original_names(model, tmp_path) -> None:
    path = tmp_path / RELEASED_FILE
    assert export_released(model, path) == []
    # As the original's code reads it: a table of tensors under its names.
    table = torch.load(path, weights_only=True)
    expected = to_released(model.state_dict())
    assert list(table) == list(expected)
    assert all(torch.equal(table[name], expected[name]) for name in expected)
    module = _modules_of(table)
    assert module.load_state_dict(table) == torch.nn.modules.module._IncompatibleKeys([], [])
    assert same_weights(load(path), model)


def test_the_configuration_survives_although_tensors_do_not_tell_it(tiny_model, tmp_path) -> None:
    model = tiny_model(quick_gelu=False, mask_ratio=0.5)
    unlike = export_released(model, tmp_path / RELEASED_FILE)
    assert unlike == [
        "quick_gelu is False here and always True in the original",
        "vision_layers is 3 here and always 12 in the original",
        "vision_heads is 2 here and always 1 in the original",
        "text_heads is 2 here and always 1 in the original",
        "decoder_heads is 2 here and always 8 in the original",
    ]
    loaded = load(tmp_path / RELEASED_FILE)
    assert loaded.config == model.config
    assert same_weights(loaded, model)


def test_a_configuration_that_does_not_read(model, tmp_path) -> None:
    table = OrderedDict(to_released(model.state_dict()))
    table._metadata = {"": {"version": 1, "segclip_config": '{"centres": 3}'}}
    torch.save(table, tmp_path / "x.bin")
    with pytest.raises(ValueError, match="carries a configuration that does not read"):
        load(tmp_path / "x.bin")


def _modules_of(table) -> torch.nn.Module:
    """A tree of modules with exactly the parameters of a table, as any network of the original's names has."""
    root = torch.nn.Module()
    for name, tensor in table.items():
        module = root
        *parents, last = name.split(".")
        for parent in parents:
            if parent not in module._modules:
                module.add_module(parent, torch.nn.Module())
            module = module._modules[parent]
        module.register_parameter(last, torch.nn.Parameter(torch.zeros_like(tensor)))
    return root
