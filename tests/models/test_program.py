from __future__ import annotations

import pytest
import torch

from segclip.models.program import export_program

KEYS = ("image_embed", "region_embed", "region_tokens", "assignment", "soft_assignment")


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model(vision_layers=2, first_stage_layers=1)


def eager(model, images):
    with torch.no_grad():
        out = model.encode_image(images)
    values = (
        out.image_embed_BE,
        out.center_embed_BGE,
        out.center_tokens_BGC,
        out.assignment.hard_BGL.argmax(1),
        out.assignment.soft_BGL,
    )
    return dict(zip(KEYS, values, strict=True))


@pytest.mark.parametrize(("dtype", "size"), [(torch.uint8, None), (torch.float32, (12, 30))])
@pytest.mark.slow
def test_the_program_computes_what_the_network_computes(model, make_inputs, tmp_path, dtype, size) -> None:
    path = tmp_path / "x.pt2"
    export_program(model, path, size, dtype)
    program = torch.export.load(path).module()
    for batch in (1, 2, 5):
        images = make_inputs(batch, model.config, size).images
        if dtype == torch.float32:
            images = model.normalise(images)
        found = program(images)
        for key, expected in eager(model, images).items():
            torch.testing.assert_close(found[key], expected)
    assert path.stat().st_size < sum(p.numel() for p in model.vision.parameters()) * 4 * 2 + 300_000


def test_what_no_program_is_made_for(model, tmp_path) -> None:
    with pytest.raises(ValueError, match="multiples of the patch size 6, got 24x25"):
        export_program(model, tmp_path / "x", (24, 25))
    with pytest.raises(ValueError, match="multiples of the patch size"):
        export_program(model, tmp_path / "x", (0, 24))
    with pytest.raises(ValueError, match=r"uint8 or float32, got torch\.int64"):
        export_program(model, tmp_path / "x", dtype=torch.int64)
