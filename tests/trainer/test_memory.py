"""Predicted memory against hand counts; what engines hold is compared in tests/distributed."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from segclip.trainer.config import load_run_config
from segclip.trainer.memory import BYTES, Counts, count_parameters, micro_batch, predict, state_bytes
from segclip.trainer.precision import Precision
from segclip.trainer.zero import ZeroConfig

CONFIGS = Path(__file__).parents[2] / "configs"
B16 = CONFIGS / "segclip_vit_b16.yaml"
COUNTS = Counts(trained=1000, frozen=200, small=16, largest=100, scaled=0)


def test_the_papers_network_is_counted() -> None:
    counts = count_parameters(load_run_config(B16, ["optimizer.freeze_layers=null"]))
    # The table of positions of the decoder never trains.
    assert counts.trained + counts.frozen == 188_799_561
    assert counts.frozen == 197 * 384


@pytest.mark.parametrize(
    ("settings", "precision", "expected"),
    [
        ({"stage": 0}, "fp32", (4800, 4000, 8000)),
        ({"stage": 0}, "bf16", (2400, 2000, 12000)),
        ({"stage": 1}, "bf16", (2400, 500, 3000)),
        ({"stage": 2}, "fp32", (4800, 1000, 3000)),
        ({"stage": 2, "gradient_dtype": "fp32"}, "bf16", (2400, 1000, 3000)),
        ({"stage": 3}, "bf16", (600 + 32, 500, 3000)),
        ({"stage": 2, "offload_optimizer": "cpu"}, "bf16", (2400, 0, 0)),
        (
            {"stage": 3, "offload_optimizer": "cpu", "offload_parameters": "cpu"},
            "bf16",
            (32, 0, 0),
        ),
    ],
)
def test_four_ranks_by_hand(
    settings: dict[str, object], precision: str, expected: tuple[int, int, int]
) -> None:
    found = state_bytes(ZeroConfig(**settings), COUNTS, 4, precision)
    assert (found.parameters, found.gradients, found.optimizer) == expected


def test_several_micro_batches_keep_the_sum_of_their_gradients_whole() -> None:
    assert state_bytes(ZeroConfig(stage=2), COUNTS, 4, "bf16", several=True).gradients == 2000 + 4000
    assert state_bytes(ZeroConfig(stage=2), COUNTS, 4, "fp32", several=True).gradients == 4000


def test_buckets() -> None:
    def buckets(**settings: object) -> int | None:
        return state_bytes(ZeroConfig(**settings), COUNTS, 4, "bf16").buckets

    assert buckets(stage=0) == 0
    assert buckets(stage=1, bucket_elements=50, overlap_communication=False) == 100
    assert buckets(stage=2, bucket_elements=50) == 200
    assert buckets(stage=3, bucket_elements=50, gather_ahead_elements=300) == 100 + 800


def test_state_of_the_papers_network_on_eight_cards() -> None:
    """16 bytes a parameter in all: 3.02 GB; 1.04, 0.71 and 0.38 GB a card at stages 1, 2 and 3.

    At stage 1 those count all gradients, which DeepSpeed frees with the last bucket.
    """
    counts = count_parameters(load_run_config(B16, ["optimizer.freeze_layers=null"]))

    def gigabytes(stage: int, cards: int) -> float:
        return state_bytes(ZeroConfig(stage=stage, bucket_elements=1), counts, cards, "bf16").total / 1e9

    assert gigabytes(0, 1) == pytest.approx(3.02, rel=0.01)
    assert gigabytes(1, 8) == gigabytes(2, 8) == pytest.approx(0.71, rel=0.02)


def test_activations_grow_with_the_micro_batch_and_shrink_with_checkpointing() -> None:
    def activations(*overrides: str) -> int:
        found = predict(load_run_config(B16, overrides), 8, "bf16", "cuda").activations
        assert found is not None
        return found

    small, large = activations("train.global_batch=384"), activations("train.global_batch=768")
    assert 1.5 < large / small < 2
    assert activations("model.activation_checkpointing=true") < large / 4


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="768, which 7 ranks cannot share equally"):
        micro_batch(load_run_config(B16), 7)


def test_every_precision_has_a_size() -> None:
    assert set(BYTES) == set(get_args(Precision)) - {"auto"}
