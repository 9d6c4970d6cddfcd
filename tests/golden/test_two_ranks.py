"""One training pass over two real processes against the original's, and against one process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.ranks import complete

WORLD = 2


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_ranks")
    complete(Path(__file__).with_name("rank.py"), folder, ranks=WORLD, seconds=300)
    return [dict(np.load(folder / f"rank{rank}.npz")) for rank in range(WORLD)]


@pytest.mark.slow
def test_losses_and_gradients(ranks, golden, under, compare) -> None:
    reference = under(golden("A_ws2.npz"), "fixed/")
    for rank, got in enumerate(ranks):
        expected = under(reference, f"rank{rank}/")
        compare(
            {"loss_total": expected["loss_total"], "loss_contrastive": expected["loss_ce"].mean()},
            got,
        )
        lengths = [np.linalg.norm(got.get(f"grad/{name}", np.zeros(1))) for name in reference["grad_names"]]
        # -1 stands for no gradient.
        known = reference["grad_l2"] >= 0
        compare(
            {
                "grad_l2": reference["grad_l2"],
                **{key: value for key, value in reference.items() if key.startswith("grad/")},
            },
            {"grad_l2": np.asarray(lengths), **got},
            where={"grad_l2": known},
        )
    for key in ranks[0]:
        if key.startswith("grad/"):
            np.testing.assert_array_equal(ranks[0][key], ranks[1][key])


@pytest.mark.slow
def test_two_ranks_equal_one_process(ranks, adapter, golden, cfg, state) -> None:
    """The averaged gradient is that of the joined batch in one process."""
    arrays = golden("A_ws2.npz")
    inputs = {
        key: np.concatenate([arrays[f"rank{rank}/{key}"] for rank in range(WORLD)])
        for key in ("image", "input_ids", "image_seg", "mae_rand")
    }
    inputs.update(
        {
            key: np.concatenate([arrays[f"fixed/rank{rank}/{key}"] for rank in range(WORLD)])
            for key in ("gumbel_main", "gumbel_mae")
        }
    )
    model = adapter.model_of(cfg, state).train()
    out = adapter.train_pass(model, inputs, "image")
    sum(adapter.losses_of(out).values()).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            continue
        found = ranks[0][f"grad/{adapter.released_name(name)}"]
        error = np.linalg.norm(found - parameter.grad.numpy())
        assert error <= 2e-6 * np.linalg.norm(parameter.grad.numpy()) + 1e-9, name
