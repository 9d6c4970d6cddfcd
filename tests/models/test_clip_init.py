from __future__ import annotations

import pytest
import torch
from open_clip.model import CLIP

from segclip.models.clip_init import clip_tensors, load_clip, start_from_clip


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(3)
    vision = {"layers": 3, "width": 32, "head_width": 16, "patch_size": 6, "image_size": 24}
    text = {"context_length": 12, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
    return CLIP(16, vision, text, quick_gelu=True).eval()


@torch.no_grad()
def test_both_towers_compute_what_clip_computes(clip, tiny_model, make_inputs) -> None:
    model = tiny_model(context_length=12).eval()
    load_clip(model, clip.state_dict(), "tiny CLIP")
    inputs = make_inputs(3, model.config)
    torch.testing.assert_close(
        model.encode_text(inputs.tokens), clip.encode_text(inputs.tokens), rtol=1e-4, atol=1e-5
    )
    assert torch.equal(model.logit_scale, clip.logit_scale)
    # The patches pass through CLIP's first blocks without its class token; the rest of CLIP's blocks come after.
    images = model.normalise(inputs.images)
    embedded = clip.visual._embeds(images)
    torch.testing.assert_close(model.encode_image(images).embedded_BNC, embedded, rtol=1e-4, atol=1e-5)
    patches = embedded[:, 1:]
    for block in clip.visual.transformer.resblocks[:2]:
        patches = block(patches)
    torch.testing.assert_close(model.encode_image(images).mid_hidden_BLC, patches, rtol=1e-4, atol=1e-5)
    tokens = torch.randn(2, 4, 32)
    last = clip.visual.transformer.resblocks[2]
    torch.testing.assert_close(model.vision.center_blocks[0](tokens), last(tokens), rtol=1e-4, atol=1e-5)


def test_new_parts_keep_their_start(clip, tiny_model) -> None:
    model, untouched = tiny_model(context_length=12), tiny_model(context_length=12)
    load_clip(model, clip.state_dict(), "tiny CLIP")
    before, after = untouched.state_dict(), model.state_dict()
    new = ("vision.aggregation.", "vision.expansion.", "vision.reconstruction_blocks.", "decoder.")
    for name, tensor in after.items():
        if name.startswith(new):
            assert torch.equal(tensor, before[name]), name
        elif "weight" in name and tensor.ndim == 2:
            assert not torch.equal(tensor, before[name]), name


def test_other_grids_patches_and_contexts(clip, tiny_config, tiny_model) -> None:
    same = clip_tensors(clip.state_dict(), tiny_config(context_length=12))
    changes = {"image_size": 48, "patch_size": 8, "context_length": 8}
    other = clip_tensors(clip.state_dict(), tiny_config(**changes))
    assert other["vision.positional_embedding"].shape == (37, 32)
    assert torch.equal(other["vision.positional_embedding"][0], same["vision.positional_embedding"][0])
    assert other["vision.patch_embed.proj.weight"].shape == (32, 3, 8, 8)
    assert torch.equal(other["text.positional_embedding"], same["text.positional_embedding"][:8])
    load_clip(tiny_model(**changes), clip.state_dict(), "tiny CLIP")


def test_other_sizes_are_refused(clip, tiny_model) -> None:
    with pytest.raises(
        ValueError, match=r"can not start from tiny CLIP.*projection is \[32, 16\], .* \[32, 24\]"
    ):
        load_clip(tiny_model(embed_dim=24, context_length=12), clip.state_dict(), "tiny CLIP")
    with pytest.raises(ValueError, match=r"text\.transformer\.resblocks\.1\.\S* is not there"):
        load_clip(tiny_model(text_layers=2, context_length=12), clip.state_dict(), "tiny CLIP")
    with pytest.raises(
        ValueError, match=r"text\.positional_embedding is \[12, 32\], the network has \[16, 32\]"
    ):
        load_clip(tiny_model(context_length=16), clip.state_dict(), "tiny CLIP")


def test_unknown_weights(tiny_model) -> None:
    with pytest.raises(ValueError, match=r"got 'ViT-B-16/openia' \(did you mean 'ViT-B-16/openai'\?\)"):
        start_from_clip(tiny_model(init_from="ViT-B-16/openia"))


def test_nothing_to_start_from(tiny_model) -> None:
    model, untouched = tiny_model(), tiny_model()
    start_from_clip(model)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), untouched.parameters(), strict=True))
