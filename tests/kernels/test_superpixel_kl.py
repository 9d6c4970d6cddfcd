from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from segclip.kernels.superpixel_kl import superpixel_kl


def example(batch=3, centers=4, patches=9, labels=3):
    """A one-hot assignment and superpixel ids."""
    generator = torch.Generator().manual_seed(0)
    winners = torch.randint(centers, (batch, patches), generator=generator)
    ids = torch.randint(labels, (batch, patches), generator=generator)
    return F.one_hot(winners, centers).transpose(1, 2).double(), ids


def by_loops(hard, ids):
    """The definition, patch by patch."""
    total = 0.0
    batch, centers, patches = hard.shape
    for b in range(batch):
        for place in range(patches):
            mates = [other for other in range(patches) if ids[b, other] == ids[b, place]]
            mean = torch.stack([hard[b, :, other] for other in mates]).mean(dim=0)
            p, s = hard[b, :, place].softmax(dim=0), mean.softmax(dim=0)
            total = total + ((s * (s / p).log()).sum() + (p * (p / s).log()).sum()) / 2
    return total / (batch * patches * centers)


def test_equals_the_definition() -> None:
    hard, ids = example()
    hard.requires_grad_(True)
    loss, expected = superpixel_kl(hard, ids), by_loops(hard, ids)
    torch.testing.assert_close(loss, expected)
    assert loss > 0
    torch.testing.assert_close(*(torch.autograd.grad(x, hard)[0] for x in (loss, expected)))


def test_gradient_by_differences() -> None:
    _, ids = example()
    soft = torch.rand(3, 4, 9, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda h: superpixel_kl(h, ids), soft)


def test_zero_where_superpixels_agree_or_are_single_patches() -> None:
    hard, ids = example()
    assert superpixel_kl(hard, torch.arange(9).expand(3, 9)) == pytest.approx(0, abs=1e-12)
    assert superpixel_kl(hard, hard.argmax(dim=1)) == pytest.approx(0, abs=1e-12)
    assert superpixel_kl(hard, torch.zeros_like(ids)) > 0


def test_values_of_ids_do_not_matter() -> None:
    hard, ids = example()
    renamed = torch.tensor([-7, 2**40, 0])[ids]
    torch.testing.assert_close(superpixel_kl(hard, renamed), superpixel_kl(hard, ids))


def test_bfloat16_is_computed_in_float32() -> None:
    hard, ids = example()
    loss = superpixel_kl(hard.bfloat16(), ids)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, superpixel_kl(hard.float(), ids))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros(3, 9), "integers, got torch.float32"),
        (torch.zeros(3, 9, dtype=torch.bool), "integers, got torch.bool"),
        (torch.zeros(3, 8, dtype=torch.int64), r"got \[3, 8\]"),
        (torch.zeros(2, 9, dtype=torch.int64), r"got \[2, 9\]"),
        (
            torch.zeros(3, 9, dtype=torch.int64, device="meta"),
            "must be on the device of the assignment, cpu, got meta",
        ),
    ],
)
def test_bad_ids(ids, message) -> None:
    with pytest.raises(ValueError, match=message):
        superpixel_kl(example()[0], ids)


def test_an_assignment_of_whole_numbers() -> None:
    hard, ids = example()
    with pytest.raises(ValueError, match=r"hard assignment of superpixel_kl must be .* got torch.int64"):
        superpixel_kl(hard.long(), ids)
