from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from segclip.kernels import contrastive_loss


def features(batch=4, width=6, seed=0, dtype=torch.float64):
    """Image and text features and a temperature."""
    generator = torch.Generator().manual_seed(seed)
    image, text = (torch.randn(batch, width, generator=generator, dtype=dtype) for _ in range(2))
    return image, text, torch.tensor(14.0, dtype=dtype)


def test_equals_the_written_out_form() -> None:
    image, text, scale = features()
    cosine = torch.stack([torch.stack([F.cosine_similarity(i, t, dim=0) for t in text]) for i in image])
    logits = scale * cosine
    own = torch.arange(4)
    expected = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    torch.testing.assert_close(contrastive_loss(image, text, scale), expected)


def test_gradients_by_differences() -> None:
    inputs = [tensor.requires_grad_(True) for tensor in features()]
    torch.autograd.gradcheck(contrastive_loss, inputs)


def test_lengths_of_features_do_not_matter() -> None:
    image, text, scale = features()
    torch.testing.assert_close(
        contrastive_loss(image * 3, text * 0.1, scale), contrastive_loss(image, text, scale)
    )


def test_both_directions_count() -> None:
    image, text, scale = features()
    torch.testing.assert_close(contrastive_loss(text, image, scale), contrastive_loss(image, text, scale))


def test_bfloat16_features_give_a_float32_loss() -> None:
    image, text, scale = features()
    loss = contrastive_loss(image.bfloat16(), text.bfloat16(), scale.float())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), contrastive_loss(image, text, scale), rtol=0.05, atol=0.05)


def test_a_pair_left_out_has_no_influence() -> None:
    image, text, scale = features()
    exclude = torch.zeros(4, 4, dtype=torch.bool)
    exclude[0, 2] = True
    none = torch.zeros_like(exclude)
    found = contrastive_loss(image, text, scale, exclude_BN=exclude, exclude_text_BN=none)
    rows = []
    logits = scale * F.normalize(image, dim=1) @ F.normalize(text, dim=1).T
    for row in range(4):
        kept = [column for column in range(4) if not exclude[row, column]]
        rows.append(-logits[row, kept].log_softmax(dim=0)[kept.index(row)])
    expected = (torch.stack(rows).mean() + F.cross_entropy(logits.T, torch.arange(4))) / 2
    torch.testing.assert_close(found, expected)


def test_one_table_serves_both_directions() -> None:
    image, text, scale = features()
    exclude = torch.rand(4, 4, generator=torch.Generator().manual_seed(1)) < 0.4
    both = contrastive_loss(image, text, scale, exclude_BN=exclude, exclude_text_BN=exclude)
    assert torch.equal(contrastive_loss(image, text, scale, exclude_BN=exclude), both)


def test_ones_own_pair_is_never_left_out() -> None:
    image, text, scale = features()
    everything = torch.ones(4, 4, dtype=torch.bool)
    # Only the own pair is left to find.
    assert contrastive_loss(image, text, scale, exclude_BN=everything) == 0
    diagonal = torch.eye(4, dtype=torch.bool)
    plain = contrastive_loss(image, text, scale)
    torch.testing.assert_close(contrastive_loss(image, text, scale, exclude_BN=diagonal), plain)


def test_a_group_of_one(tmp_path) -> None:
    image, text, scale = features()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        found = contrastive_loss(image, text, scale, group=dist.group.WORLD)
    finally:
        dist.destroy_process_group()
    assert torch.equal(found, contrastive_loss(image, text, scale))


@pytest.mark.parametrize(
    ("image", "text", "exclude", "message"),
    [
        ((4, 6), (3, 6), None, r"got \[4, 6\] and \[3, 6\]"),
        ((4,), (4,), None, r"\[B, E\]"),
        ((0, 6), (0, 6), None, "at least one pair"),
        ((4, 6), (4, 6), torch.zeros(4, 4), r"exclude_BN must be bool \[4, 4\], got torch.float32"),
        ((4, 6), (4, 6), torch.zeros(4, 5, dtype=torch.bool), r"got torch.bool \[4, 5\]"),
    ],
)
def test_bad_input(image, text, exclude, message) -> None:
    with pytest.raises(ValueError, match=message):
        contrastive_loss(torch.zeros(image), torch.zeros(text), torch.ones(()), exclude_BN=exclude)
