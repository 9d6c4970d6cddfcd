from __future__ import annotations

import pytest
import torch

from benchmarks import eval as benchmark
from segclip.models.sizes import segclip_vit_b16

SMALL = {
    "vision_width": 32, "vision_heads": 2, "vision_layers": 2, "first_stage_layers": 1, "center_layers": 1,
    "embed_dim": 32, "text_width": 16, "text_heads": 2, "text_layers": 1, "decoder_depth": 1, "decoder_heads": 2,
}  # fmt: skip


@pytest.fixture(autouse=True)
def small_network(monkeypatch) -> None:
    """The same patches and windows, far fewer weights; a small picture."""
    monkeypatch.setattr(
        "segclip.models.sizes.segclip_vit_b16", lambda **changes: segclip_vit_b16(**{**SMALL, **changes})
    )
    monkeypatch.setattr(benchmark, "LARGE", (300, 500))
    monkeypatch.setattr(benchmark, "BATCH", 2)
    monkeypatch.setattr(benchmark, "cores", torch.get_num_threads)


def test_both_ways_find_the_same_labels() -> None:
    figures = benchmark.speed(images=2, turns=1, sizes=((240, 310),))
    assert figures["310 x 240, labels that differ"].value < 100
    found = int(figures["310 x 240, labels that differ"].beside.split()[1])
    assert found > 2
    speedup = figures["310 x 240, speed / plain way"]
    assert speedup.target == 4.0
    assert speedup.holds == (speedup.value >= 4.0)
    assert figures["cells and labels"].value > 0


@pytest.mark.parametrize("protocol", benchmark.HARDEST)
def test_memory_of_every_protocol(protocol) -> None:
    found = benchmark.memory(protocol)
    assert found["labels"] > 1
    (figure,) = benchmark.memory_figure(protocol, found).values()
    assert figure.holds
    (figure,) = benchmark.memory_figure(protocol, {**found, "peak_mib": found["before_mib"] + 2000}).values()
    assert not figure.holds


def test_every_protocol_is_measured() -> None:
    from segclip.eval.protocol import load_protocol, protocol_names

    assert set(benchmark.HARDEST) == set(protocol_names())
    for name, dataset in benchmark.HARDEST.items():
        assert not dataset or dataset in load_protocol(name).datasets
