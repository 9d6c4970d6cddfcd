from __future__ import annotations

import json
import pickle
import warnings
import zipfile

import huggingface_hub.constants
import open_clip
import pytest
import torch
import torch.nn.functional as F

import segclip
from segclip.console import UserError
from segclip.models.config import ModelConfig
from segclip.models.names import own_name
from segclip.models.positions import resample_grid
from segclip.models.pretrained import clip_config, clip_tensors, load_clip, reference_key
from segclip.models.segclip import SegCLIP
from segclip.models.sizes import SIZES

# A CLIP of the tiny network's sizes, in open_clip's terms.
ARCHITECTURE = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 24, "layers": 3, "width": 32, "head_width": 16, "patch_size": 6},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
}


def make_clip(folder, **changes):
    """A CLIP of random weights, and its folder as ``init_from`` names it."""
    architecture = {**ARCHITECTURE, **changes}
    torch.manual_seed(3)
    clip = open_clip.CLIP(**architecture).eval()
    with torch.no_grad():
        for name, parameter in clip.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
            elif "ln_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    folder.mkdir(exist_ok=True)
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": architecture, "preprocess_cfg": {}})
    )
    torch.save(clip.state_dict(), folder / "open_clip_pytorch_model.bin")
    return clip, f"local-dir:{folder}"


@pytest.mark.parametrize("quick", [True, False])
def test_both_towers_compute_what_clip_computes(tiny_config, make_inputs, tmp_path, quick) -> None:
    clip, init_from = make_clip(tmp_path, quick_gelu=quick)
    model = SegCLIP(tiny_config(init_from=init_from, quick_gelu=quick)).eval()
    inputs = make_inputs(3, model.config)
    with torch.no_grad():
        torch.testing.assert_close(model.encode_text(inputs.tokens), clip.encode_text(inputs.tokens))
        # CLIP's blocks without its class token, which SegCLIP drops before them.
        pixels = model.normalise(inputs.images)
        x = clip.visual.conv1(pixels).flatten(2).transpose(1, 2)
        x = clip.visual.ln_pre(x + clip.visual.positional_embedding[1:])
        for block in clip.visual.transformer.resblocks[:2]:
            x = block(x)
        output = model.encode_image(inputs.images)
        torch.testing.assert_close(output.mid_hidden_BLC, x)
        regions = clip.visual.transformer.resblocks[2](output.region_tokens_BGC)
        torch.testing.assert_close(output.center_tokens_BGC, regions)
        torch.testing.assert_close(
            output.image_embed_BE, clip.visual.ln_post(regions.max(dim=1).values) @ clip.visual.proj
        )
        torch.testing.assert_close(model.temperature(), clip.logit_scale.exp())
        other = SegCLIP(tiny_config(quick_gelu=not quick))
        other.load_state_dict(model.state_dict())
        assert not torch.allclose(
            other.encode_text(inputs.tokens), clip.encode_text(inputs.tokens), atol=1e-4
        )


def test_what_starts_from_clip_and_what_does_not(tiny_config, tmp_path) -> None:
    _, init_from = make_clip(tmp_path)
    torch.manual_seed(5)
    fresh = SegCLIP(tiny_config())
    state_of_random_numbers = torch.get_rng_state()
    torch.manual_seed(5)
    model = SegCLIP(tiny_config(init_from=init_from))
    # The random start of the rest does not depend on CLIP, nor does anything drawn afterwards.
    assert torch.equal(torch.get_rng_state(), state_of_random_numbers)
    own = model.state_dict()
    kept = {name for name, tensor in fresh.state_dict().items() if torch.equal(tensor, own[name])}
    new = ("vision.aggregation.", "vision.expansion.", "vision.reconstruction_blocks.", "decoder.")
    same_start = {"logit_scale"}  # 1 / 0.07 in both
    assert {name for name in own if name.startswith(new)} == kept - same_start
    assert set(load_clip(fresh, init_from)) == own.keys() - kept | same_start


def test_names_are_those_of_the_original(golden_structure) -> None:
    table = golden_structure["clip_key_to_reference_key_config_A"]
    assert {key: reference_key(key, 10) for key in table} == table
    assert set(golden_structure["reference_keys_not_in_clip_config_A"]).isdisjoint(table.values())
    sample = golden_structure["clip_key_to_reference_key_config_B_first_stage_9_sample"]
    assert {key: reference_key(key, 9) for key in sample} == sample
    assert all(own_name(name) for name in table.values())


@pytest.fixture(scope="module")
def golden_structure(request):
    path = request.path.parents[1] / "golden" / "data" / "structure_vitb16.json"
    return json.loads(path.read_text())


@pytest.mark.parametrize(("image_size", "patch_size"), [(36, 6), (12, 6), (24, 3), (24, 12)])
def test_other_grids_and_patch_sizes(tiny_config, make_inputs, tmp_path, image_size, patch_size) -> None:
    clip, init_from = make_clip(tmp_path)
    config = tiny_config(init_from=init_from, image_size=image_size, patch_size=patch_size, mask_ratio=0.5)
    model = SegCLIP(config).eval()
    expected = resample_grid(clip.visual.positional_embedding, (4, 4), config.grid)
    torch.testing.assert_close(model.vision.positional_embedding, expected)
    if image_size == 36:
        grid = F.interpolate(
            clip.visual.positional_embedding[1:].T.reshape(1, 32, 4, 4), size=(6, 6), mode="bicubic"
        )
        torch.testing.assert_close(model.vision.positional_embedding[1:], grid.flatten(2)[0].T)
    # Of all kernels of the new size, the one that takes resized patches for the tokens they gave before.
    pixels = torch.eye(36).view(36, 1, 6, 6)
    resize = F.interpolate(pixels, size=(patch_size, patch_size), mode="bicubic", antialias=True).flatten(1)
    wanted = clip.visual.conv1.weight.flatten(0, 1).flatten(1).T
    # Not the default driver: that of torch 2.11 is wrong where there are more unknowns than equations.
    best = torch.linalg.lstsq(resize, wanted, driver="gelsd").solution
    kernel = model.vision.patch_embed.proj.weight.flatten(0, 1).flatten(1).T
    torch.testing.assert_close(kernel, best, atol=1e-4, rtol=1e-3)
    assert model.encode_image(make_inputs(1, config).images).image_embed_BE.isfinite().all()


def test_fewer_words(tiny_config, make_inputs, tmp_path) -> None:
    clip, init_from = make_clip(tmp_path)
    model = SegCLIP(tiny_config(init_from=init_from, context_length=6)).eval()
    tokens = make_inputs(3, model.config).tokens
    torch.testing.assert_close(model.encode_text(tokens), clip.encode_text(F.pad(tokens, (0, 2))))


def test_a_file_of_weights_beside_a_model_of_open_clip(tiny_config, tmp_path) -> None:
    clip, _ = make_clip(tmp_path / "clip")
    open_clip.add_model_config(_json(tmp_path / "tiny-quickgelu.json", ARCHITECTURE))
    open_clip.add_model_config(_json(tmp_path / "tiny.json", {**ARCHITECTURE, "quick_gelu": False}))
    file = tmp_path / "clip" / "open_clip_pytorch_model.bin"
    model = SegCLIP(tiny_config(init_from=f"tiny-quickgelu/{file}"))
    assert torch.equal(model.text.ln_final.weight, clip.ln_final.weight)
    with pytest.raises(ValueError, match=r"set model\.quick_gelu to false \(if the file .* tiny-quickgelu//"):
        SegCLIP(tiny_config(init_from=f"tiny/{file}"))


def test_one_call_loads_clip(tiny_config, make_inputs, tmp_path) -> None:
    clip, init_from = make_clip(tmp_path / "clip")
    open_clip.add_model_config(_json(tmp_path / "tiny-quickgelu.json", ARCHITECTURE))
    file = tmp_path / "clip" / "open_clip_pytorch_model.bin"
    for name in (init_from, f"tiny-quickgelu/{file}"):
        model = segclip.load(name)
        assert not model.training
        # Sizes of CLIP's, the rest the paper's; two of three blocks, as ten of twelve, see patches.
        assert model.config == ModelConfig(
            image_size=24,
            patch_size=6,
            vision_width=32,
            vision_heads=2,
            vision_layers=3,
            first_stage_layers=2,
            embed_dim=16,
            text_width=32,
            text_heads=2,
            text_layers=1,
            context_length=8,
            vocab_size=64,
            init_from=name,
        )
        inputs = make_inputs(2, model.config)
        torch.testing.assert_close(model.encode_text(inputs.tokens), clip.encode_text(inputs.tokens))
        assert torch.equal(model.vision.center_blocks[0].mlp.fc1.weight, _blocks(clip)[2].mlp.c_fc.weight)


@pytest.mark.parametrize(
    ("name", "paper_but"),
    [
        ("ViT-B-16/openai", {}),
        ("ViT-B-16/laion2b_s34b_b88k", {"quick_gelu": False}),
        ("ViT-B-32/openai", {"patch_size": 32}),
        ("ViT-L-14-336/openai", {**SIZES["vit_l14"], "image_size": 336}),
    ],
)
def test_the_configuration_of_a_clip(name, paper_but) -> None:
    assert clip_config(name) == ModelConfig(**paper_but, init_from=name)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("ViT-B-16/openia", ValueError, r"neither a tag of ViT-B-16 \(did you mean 'openai'\?\) nor a file"),
        ("ViT-B-16", ValueError, "must be MODEL/TAG"),
        ("ViT-B-17/openai", ValueError, r"no model 'ViT-B-17' \(did you mean"),
        ("ViT-B/16", ValueError, r"no model 'ViT-B' \(did you mean ViT-B-16/openai\?\)"),
        ("RN50/openai", ValueError, "not CLIP's vision transformer"),
        ("local-dir:/nowhere", ValueError, "there is no /nowhere/open_clip_config.json"),
        ("runs/x/export", FileNotFoundError, "no checkpoint at runs/x/export: .* such as ViT-B-16/openai"),
    ],
)
def test_names_that_load_nothing(name, error, message) -> None:
    with pytest.raises(error, match=message):
        segclip.load(name)


def test_a_path_comes_before_a_name_of_clip(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ViT-B-16" / "openai").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="ViT-B-16/openai is no export folder"):
        segclip.load("ViT-B-16/openai")


@pytest.fixture
def b16():
    """The configuration of a ViT-B/16; the network itself is not needed to refuse one."""
    return lambda **changes: _Unbuilt(ModelConfig(**changes))


class _Unbuilt:
    def __init__(self, config: ModelConfig) -> None:
        self.config = config


@pytest.mark.parametrize(
    ("init_from", "changes", "message"),
    [
        ("ViT-B-16", {}, "must be MODEL/TAG"),
        ("ViT-B-17/openai", {}, r"no model 'ViT-B-17' \(did you mean 'ViT-B-1"),
        (
            "ViT-B-16/openia",
            {},
            r"neither a tag of ViT-B-16 \(did you mean 'openai'\?\) nor a file; its tags",
        ),
        ("hf-hub:laion/x", {}, "give its folder as local-dir:FOLDER"),
        ("local-dir:/nowhere", {}, "there is no /nowhere/open_clip_config.json"),
        ("RN50/openai", {}, "not CLIP's vision transformer"),
        ("ViT-B-16-SigLIP/webli", {}, "not CLIP's vision transformer"),
        ("ViT-L-14-CLIPA/datacomp1b", {}, r"differs from CLIP in no_ln_pre, pool_type"),
        ("roberta-ViT-B-32/laion2b_s12b_b32k", {"patch_size": 32}, "differs from CLIP in hf_model_name"),
        (
            "ViT-L-14/openai",
            {},
            r"vision_width is 768, there it is 1024; vision_layers is 12, there it is 24; vision_heads is 12, there",
        ),
        ("ViT-B-16/openai", {"context_length": 100}, "more than the 77 words"),
        ("ViT-B-16/laion2b_s34b_b88k", {}, r"trained with GELU.*set model\.quick_gelu to false$"),
        ("ViT-B-16/openai", {"quick_gelu": False}, r"trained with QuickGELU.*set model\.quick_gelu to true$"),
        ("ViT-B-16/openai", {"image_mean": (0.5, 0.5, 0.5)}, r"set model\.image_mean to \[0\.48145466, "),
    ],
)
def test_what_can_not_start_the_network_is_refused_before_anything_is_downloaded(
    b16, init_from, changes, message
) -> None:
    with pytest.raises(ValueError, match=message):
        load_clip(b16(**changes), init_from)


def test_a_failed_download_is_one_clear_error(b16, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError) as caught:
        load_clip(b16(), "ViT-B-16/openai")
    text = str(caught.value)
    assert (
        "ViT-B-16/openai could not be downloaded from https://huggingface.co/timm/vit_base_patch16_clip"
        in text
    )
    assert "init_from: ViT-B-16-quickgelu/PATH/open_clip_model.safetensors" in text


def test_files_that_are_not_the_weights(tiny_config, tmp_path) -> None:
    _, init_from = make_clip(tmp_path)
    file = tmp_path / "open_clip_pytorch_model.bin"
    config = tiny_config(init_from=init_from)
    state = torch.load(file, weights_only=True)

    torch.save({key: value for key, value in state.items() if key != "ln_final.bias"}, file)
    with pytest.raises(ValueError, match=r"does not hold the weights of .*ln_final\.bias"):
        SegCLIP(config)
    torch.save({**state, "ln_final.bias": torch.zeros(5)}, file)
    with pytest.raises(ValueError, match=r"does not hold the weights of .*ln_final\.bias"):
        SegCLIP(config)
    file.write_bytes(b"no weights")
    with pytest.raises(ValueError, match="does not hold the weights"):
        SegCLIP(config)
    file.unlink()
    with pytest.raises(ValueError, match="does not hold the weights"):
        SegCLIP(config)


def test_no_code_is_run(tiny_config, tmp_path) -> None:
    _, init_from = make_clip(tmp_path)
    marker = tmp_path / "ran"

    class Payload:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    (tmp_path / "open_clip_pytorch_model.bin").write_bytes(
        pickle.dumps({"logit_scale": Payload()}, protocol=2)
    )
    with pytest.raises(ValueError, match="does not hold the weights"):
        SegCLIP(tiny_config(init_from=init_from))
    assert not marker.exists()


def test_torchscript_archives_are_refused(tiny_config, tmp_path) -> None:
    open_clip.add_model_config(_json(tmp_path / "tiny-quickgelu.json", ARCHITECTURE))
    with zipfile.ZipFile(tmp_path / "clip.pt", "w") as archive:
        archive.writestr("clip/constants.pkl", b"")
    with pytest.raises(ValueError, match="is a TorchScript program"):
        SegCLIP(tiny_config(init_from=f"tiny-quickgelu/{tmp_path / 'clip.pt'}"))


def test_parameters_without_a_place(tiny_config, tmp_path) -> None:
    clip, _ = make_clip(tmp_path)
    with pytest.raises(ValueError, match=r"1 parameters that the network has no place for: visual\.head"):
        clip_tensors({**clip.state_dict(), "visual.head": torch.zeros(1)}, tiny_config())


def test_no_warning_about_the_activation(tiny_config, tmp_path) -> None:
    _, init_from = make_clip(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SegCLIP(tiny_config(init_from=init_from))


def test_a_caller_that_loads_all_weights_needs_no_clip(tiny_config) -> None:
    config = tiny_config(init_from="ViT-B-16/openai")
    assert SegCLIP(config, load_init=False).config == config
    with pytest.raises(ValueError, match="can not start from ViT-B-16/openai"):
        SegCLIP(config)


def _blocks(clip):
    return clip.visual.transformer.resblocks


def _json(path, content) -> str:
    path.write_text(json.dumps(content))
    return str(path)
