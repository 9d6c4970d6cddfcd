from __future__ import annotations

import pytest

from segclip.models.names import from_released, own_name, released_name, to_released


@pytest.mark.parametrize(
    "changes", [{}, {"text_reconstruction": True}, {"vision_layers": 13, "first_stage_layers": 11}]
)
def test_names_are_in_one_to_one_correspondence(tiny_model, changes) -> None:
    own = list(tiny_model(**changes).state_dict())
    released = [released_name(name) for name in own]
    assert len(set(released)) == len(own)
    assert [own_name(name) for name in released] == own


def test_some_pairs() -> None:
    pairs = {
        "vision.patch_blocks.10.attn.qkv.bias": "clip.visual.transformer.layers0.10.attn.in_proj_bias",
        "vision.center_blocks.1.mlp.fc2.weight": "clip.visual.transformer.layers2.1.mlp.c_proj.weight",
        "vision.aggregation.norm_key.weight": "clip.visual.transformer.semantic_layer2.k_ln.weight",
        "text.transformer.resblocks.3.attn.in_proj_weight": "clip.transformer.resblocks.3.attn.in_proj_weight",
        "decoder.norm.bias": "vis_mae_decoder.decoder_norm.bias",
    }
    for own, released in pairs.items():
        assert released_name(own) == released
        assert own_name(released) == own


def test_other_names() -> None:
    with pytest.raises(ValueError, match=r"'vision\.head' is not the name of a parameter"):
        released_name("vision.head")
    assert own_name("clip.visual.norm") is None
    # A beginning of a name ends where a part of it ends.
    assert own_name("clip.visual.projector") is None


def test_tables_are_renamed_and_strangers_kept() -> None:
    tensors = {"logit_scale": 1, "vision.ln_pre.bias": 2}
    assert to_released(tensors) == {"clip.logit_scale": 1, "clip.visual.ln_pre.bias": 2}
    assert from_released({**to_released(tensors), "epoch": 3}) == {**tensors, "epoch": 3}
