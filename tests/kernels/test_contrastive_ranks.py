"""The contrastive loss over real ranks against one process that has the whole batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.kernels import contrastive_rank as script
from tests.ranks import complete

WORLD = 4


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    complete(Path(script.__file__), folder, ranks=WORLD, seconds=300)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.slow
@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize("ring", [False, True])
@pytest.mark.parametrize("group", ["one", "two", "all"])
def test_equal_to_one_process(ranks, group, ring, exclude) -> None:
    members = [ranks[rank][group, ring, exclude] for rank in script.GROUPS[group]]
    losses, image_grads, text_grads, scale_grads = zip(*members, strict=True)
    *inputs, table = script.batch(len(members))
    loss, image_grad, text_grad, scale_grad = script.loss_and_gradients(*inputs, table if exclude else None)

    def check(found, expected) -> None:
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * expected.abs().max().item())

    # Parameters' gradients are averaged over ranks; the features' are not.
    check(torch.stack(losses).mean(), loss)
    check(torch.cat(image_grads) / len(members), image_grad)
    check(torch.cat(text_grads) / len(members), text_grad)
    check(torch.stack(scale_grads).mean(), scale_grad)


@pytest.mark.slow
def test_the_ring_computes_while_texts_and_gradients_travel(ranks) -> None:
    for rank in ranks:
        seen = rank["all", True, "seen"]
        for what in ("texts", "gradients"):
            sent = [place for place, event in enumerate(seen) if event == f"send {what}"]
            waited = [place for place, event in enumerate(seen) if event == f"wait for {what}"]
            # Texts make three steps forward and three backward; gradients four, the last of them home.
            assert len(sent) == len(waited) == (6 if what == "texts" else 4)
            if what == "gradients":
                sent, waited = sent[:-1], waited[:-1]
            for begin, end in zip(sent, waited, strict=True):
                assert "compute" in seen[begin:end]
