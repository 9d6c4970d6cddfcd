from __future__ import annotations

import pytest
from pydantic import ValidationError

from segclip.models.config import ModelConfig


def test_default_is_the_papers() -> None:
    config = ModelConfig()
    assert (config.grid, config.patches, config.decoder_width) == ((14, 14), 196, 384)
    # A quarter of 197 tokens, of which one is the class token.
    assert config.visible_patches(196) == 48


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 15}, "patch_size must divide image_size, got 15 and 224"),
        ({"vision_heads": 5}, "vision_heads must divide vision_width, got 5 and 768"),
        ({"text_heads": 5}, "text_heads must divide text_width, got 5 and 512"),
        ({"first_stage_layers": 13}, "first_stage_layers is 13, more than the 12 vision_layers"),
        ({"decoder_heads": 7}, "decoder_heads = 7"),
        ({"vision_width": 12, "vision_heads": 2}, "multiple of 4"),
        ({"mask_ratio": 0.995}, "mask_ratio 0.995 leaves none of 196 patches visible"),
        ({"mask_ratio": 1.0}, "mask_ratio"),
        ({"text_reconstruction": True, "text_decoder_heads": 7}, "text_decoder_heads = 7"),
        ({"centres": 8}, "centres"),
        ({"centers": "many"}, "centers"),
        ({"drop_path": 1.0}, "drop_path"),
    ],
)
def test_sizes_that_do_not_go_together(changes, message) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelConfig(**changes)


@pytest.mark.parametrize(
    ("init_from", "published"),
    [
        (None, None),
        ("ViT-B-16/openai", "ViT-B-16/openai"),
        ("ViT-B-16/weights.pt", "ViT-B-16/weights.pt"),
        ("ViT-B-16/" + "/home/me/clip/weights.pt", "ViT-B-16/weights.pt"),
        ("ViT-B-16/~/clip/weights.pt", "ViT-B-16/weights.pt"),
        ("local-dir:/home/me/clip", "local-dir:clip"),
        ("local-dir:../clip/", "local-dir:clip"),
        ("local-dir:C:\\Users\\me\\clip", "local-dir:clip"),
    ],
)
def test_places_are_not_published(init_from, published) -> None:
    config = ModelConfig(init_from=init_from).for_others()
    assert config == ModelConfig(init_from=published)
    assert config.for_others() == config


def test_every_field_is_described() -> None:
    assert [name for name, field in ModelConfig.model_fields.items() if not field.description] == []
