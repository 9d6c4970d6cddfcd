"""One rank of the contrastive loss's tests with real processes.

Argument: folder for the results, a file each. Every rank takes part in groups of one,
two and all ranks, and saves for each its loss and gradients by either way of bringing ranks together, and what it did
in which order.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor

from segclip.kernels import contrastive_ranks
from segclip.kernels.contrastive import contrastive_loss

GROUPS = {"one": [1], "two": [2, 3], "all": [0, 1, 2, 3]}
ROWS, WIDTH = 33, 80
"""Of each rank's features."""


def batch(ranks: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images, texts and temperature of a global batch, and a table of pairs to leave out."""
    generator = torch.Generator().manual_seed(ranks)
    image, text = torch.randn((2, ranks * ROWS, WIDTH), generator=generator)
    # Far enough from chance for some rows to matter more than others.
    text += 0.3 * image
    exclude = torch.rand((ranks * ROWS, ranks * ROWS), generator=generator) < 0.2
    return image, text, torch.tensor(1 / 0.07), exclude


def loss_and_gradients(
    image: Tensor, text: Tensor, scale: Tensor, exclude: Tensor | None, group=None, ring=False
) -> list[Tensor]:
    """Of one call of the loss."""
    inputs = [tensor.clone().requires_grad_(True) for tensor in (image, text, scale)]
    loss = contrastive_loss(*inputs, group=group, ring=ring, exclude_BN=exclude)
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


@contextmanager
def watched() -> Iterator[list[str]]:
    """What a rank does, in order: starts to send, computes a block, waits for what arrives."""
    seen: list[str] = []

    def noted(name, function):
        def call(*arguments, **named):
            seen.append(name)
            return function(*arguments, **named)

        return call

    def pass_on(tensor, group, tag):
        what = ("texts", "gradients")[tag]
        return noted(f"wait for {what}", noted(f"send {what}", original)(tensor, group, tag))

    original = contrastive_ranks._pass_on
    with (
        patch.object(contrastive_ranks, "_pass_on", pass_on),
        patch.object(contrastive_ranks, "pair_terms", noted("compute", contrastive_ranks.pair_terms)),
        patch.object(contrastive_ranks, "pair_gradients", noted("compute", contrastive_ranks.pair_gradients)),
    ):
        yield seen


def main() -> None:
    """Take part in every group."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    found = {}
    for name, ranks in GROUPS.items():
        group = dist.new_group(ranks)
        if rank not in ranks:
            continue
        image, text, scale, exclude = batch(len(ranks))
        place = ranks.index(rank)
        own = slice(place * ROWS, (place + 1) * ROWS)
        for ring in (False, True):
            for table in (None, exclude[own]):
                with watched() as seen:
                    found[name, ring, table is not None] = loss_and_gradients(
                        image[own], text[own], scale, table, group, ring
                    )
                found[name, ring, "seen"] = seen
    torch.save(found, Path(sys.argv[1]) / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
