"""What a device computes in; what it cannot is refused with a remedy."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from segclip.trainer.precision import Fp16Config, resolve_precision, set_matmul_precision
from segclip.trainer.zero import ZeroConfig, deepspeed_config

CPU = torch.device("cpu")


@pytest.fixture
def matmul_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def test_auto_is_bf16_where_the_cpu_multiplies_it() -> None:
    capabilities = torch.cpu.get_capabilities()
    has = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    assert resolve_precision("auto", CPU) == ("bf16" if has else "fp32")


@pytest.mark.parametrize("wanted", ["bf16", "fp32"])
def test_runs_on_every_cpu(wanted: str) -> None:
    assert resolve_precision(wanted, CPU) == wanted


def test_tf32_needs_a_card_that_has_it() -> None:
    with pytest.raises(
        ValueError, match=r"'tf32', which this CPU does not have .* set it to fp32, or to auto"
    ):
        resolve_precision("tf32", CPU)


def test_fp16_needs_hardware_that_multiplies_it() -> None:
    from deepspeed.accelerator import get_accelerator

    if get_accelerator().is_fp16_supported():
        assert resolve_precision("fp16", CPU) == "fp16"
    else:
        with pytest.raises(ValueError, match="'fp16', which this CPU does not multiply"):
            resolve_precision("fp16", CPU)


@pytest.mark.usefixtures("matmul_precision")
def test_only_tf32_lets_float32_products_be_rounded() -> None:
    set_matmul_precision("tf32")
    assert torch.get_float32_matmul_precision() == "high"
    for other in ("fp32", "bf16", "fp16"):
        set_matmul_precision(other)
        assert torch.get_float32_matmul_precision() == "highest"


def test_settings_of_loss_scaling_reach_deepspeed() -> None:
    fp16 = Fp16Config(initial_scale_power=8, window=50, hysteresis=1, min_scale=2)

    def sections(precision: str) -> dict[str, object]:
        found: dict[str, object] = deepspeed_config(
            ZeroConfig(), local_batch=2, world_size=1, precision=precision, gradient_clip=1.0, fp16=fp16
        )
        return found

    assert sections("fp16")["fp16"] == {
        "enabled": True,
        "loss_scale": 0,
        "initial_scale_power": 8,
        "loss_scale_window": 50,
        "hysteresis": 1,
        "min_loss_scale": 2,
    }
    assert sections("fp16")["bf16"] == {"enabled": False}
    for other in ("fp32", "tf32", "bf16"):
        assert "fp16" not in sections(other)
        assert sections(other)["bf16"] == {"enabled": other == "bf16"}
