"""Memory that is predicted is what engines of one and of two ranks hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.distributed.conftest import selected
from tests.ranks import complete

pytestmark = pytest.mark.slow
WORKER = Path(__file__).with_name("memory_of_ranks.py")
# Few words: a table of them would be most of the network, and whole on each rank whose share it touches.
COMMON = [
    "optimizer.frozen=[]",
    "zero.keep_below_elements=1000",
    "model.vocab_size=200",
    "zero.bucket_elements=100000",
]
VARIANTS = {
    f"{precision}-zero{stage}": [
        f"train.precision={precision}",
        f"zero.stage={stage}",
        *[word for word in COMMON if stage == 3 or "keep_below" not in word],
    ]
    for precision in ("fp32", "bf16")
    for stage in range(4)
}
VARIANTS["bf16-zero2-fp32"] = [*VARIANTS["bf16-zero2"], "zero.gradient_dtype=fp32"]
VARIANTS["frozen"] = ["zero.stage=2", "optimizer.frozen=[vision.patch_blocks]", *COMMON[2:]]
VARIANTS["offload"] = [*VARIANTS["fp32-zero2"], "zero.offload_optimizer=cpu"]
VARIANTS["bf16-passes"] = [*VARIANTS["bf16-zero2"], "train.micro_batch=4"]
VARIANTS["fp32-passes"] = [*VARIANTS["fp32-zero0"], "train.micro_batch=4"]
ALWAYS = {
    1: [*(f"bf16-zero{stage}" for stage in range(4)), "fp32-zero0"],
    2: [
        name
        for name in VARIANTS
        if name not in ("fp32-zero1", "fp32-zero2", "bf16-zero2-fp32", "fp32-passes")
    ],
}
"""The rest says nearly the same, and is left to make test-all."""
Rows = dict[str, list[dict[str, int]]]


@pytest.fixture(scope="module")
def rows(
    config_file: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> dict[int, Rows]:
    """Predicted and measured bytes of the last of one and of two ranks."""
    root = tmp_path_factory.mktemp("memory")
    found = {}
    for ranks in (1, 2):
        file = root / f"{ranks}.json"
        wanted = {*ALWAYS[ranks], *selected(request, Path(__file__), "name", ranks=ranks)}
        variants = {name: "::".join(words) for name, words in VARIANTS.items() if name in wanted}
        complete(WORKER, config_file, file, *variants.values(), ranks=ranks)
        found[ranks] = dict(zip(variants, json.loads(file.read_text()).values(), strict=True))
    return found


@pytest.mark.parametrize(
    ("ranks", "name"),
    [
        pytest.param(ranks, name, marks=[] if name in ALWAYS[ranks] else pytest.mark.exhaustive)
        for ranks in (1, 2)
        for name in VARIANTS
    ],
)
def test_prediction_agrees_with_what_is_held(rows: dict[int, Rows], ranks: int, name: str) -> None:
    expected, found = rows[ranks][name]
    for part in ("parameters", "optimizer"):
        assert found[part] == pytest.approx(expected[part], rel=0.02), part
    # Gradients that lie across the border of two shares are whole on both ranks: noticeable at this size.
    assert 0.98 * expected["gradients"] <= found["gradients"] <= 1.2 * expected["gradients"]
    assert found["activations"] == pytest.approx(expected["activations"], rel=0.1)


def test_each_stage_shares_out_more(rows: dict[int, Rows]) -> None:
    one, two = ({name: pair[1] for name, pair in rows[ranks].items()} for ranks in (1, 2))
    for stage in range(4):
        name = f"bf16-zero{stage}"
        halves = [part for part in ("optimizer", "parameters") if two[name][part] < 0.6 * one[name][part]]
        assert halves == [[], ["optimizer"], ["optimizer"], ["optimizer", "parameters"]][stage]


def test_what_is_offloaded_is_counted_on_the_host(rows: dict[int, Rows]) -> None:
    expected, found = rows[2]["offload"]
    assert found["optimizer"] == found["gradients"] == 0
    assert 0 < found["host"] <= expected["host"]
