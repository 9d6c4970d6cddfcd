from __future__ import annotations

import pytest

from benchmarks.own_process import run_alone


@pytest.mark.slow
def test_blocks_take_a_fraction_of_the_memory() -> None:
    """At a smaller batch than the benchmark's; the share falls with the batch."""
    blocks, plain = (
        run_alone("contrastive_memory", "--case", case, "--batch", 8192, "--width", 64)
        for case in ("blocks", "plain")
    )
    assert plain["peak_mib"] > 3 * 8192**2 * 4 / 2**20, "the plain version no longer holds all logits"
    assert blocks["peak_mib"] < 0.1 * plain["peak_mib"]
    assert blocks["loss"] == pytest.approx(plain["loss"], rel=1e-6)
