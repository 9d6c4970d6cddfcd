from __future__ import annotations

import pytest

from benchmarks.contrastive_memory import run


@pytest.mark.slow
def test_blocks_take_a_fraction_of_the_memory() -> None:
    """At a smaller batch than the benchmark's; the share falls with the batch."""
    blocks, plain = run("blocks", 8192, 64), run("plain", 8192, 64)
    assert plain["peak_mib"] > 3 * 8192**2 * 4 / 2**20, "the plain version no longer holds all logits"
    assert blocks["peak_mib"] < 0.1 * plain["peak_mib"]
    assert blocks["loss"] == pytest.approx(plain["loss"], rel=1e-6)
