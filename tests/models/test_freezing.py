from __future__ import annotations

import pytest

from segclip.models.freezing import frozen_names


def test_blocks_are_counted_through_both_stages(tiny_config) -> None:
    config = tiny_config()
    always = {"vision.positional_embedding", "vision.patch_embed"}
    assert set(frozen_names(config, -1)) == always
    embeddings = set(frozen_names(config))
    assert embeddings > always
    assert set(frozen_names(config, 3)) - embeddings == {
        "vision.patch_blocks.0",
        "vision.patch_blocks.1",
        "vision.center_blocks.0",
        "text.transformer.resblocks.0",
    }
    assert set(frozen_names(config, 0, 1)) - embeddings == {"text.transformer.resblocks.0"}


def test_every_name_is_the_beginning_of_a_parameters(tiny_model) -> None:
    model = tiny_model()
    names = [name for name, _ in model.named_parameters()]
    for prefix in frozen_names(model.config, 3, 1):
        assert any(name == prefix or name.startswith(prefix + ".") for name in names), prefix


@pytest.mark.parametrize(
    ("layers", "text_layers", "message"), [(-2, 0, "-1 to 3"), (4, 0, "got 4"), (0, 2, "0 to 1")]
)
def test_more_blocks_than_there_are(tiny_config, layers, text_layers, message) -> None:
    with pytest.raises(ValueError, match=message):
        frozen_names(tiny_config(), layers, text_layers)
