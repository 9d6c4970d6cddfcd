from __future__ import annotations

from pathlib import Path

import pytest
import torch

from segclip.models.flops import training_flops
from segclip.trainer.config import load_run_config
from segclip.trainer.distributed import Ranks
from segclip.trainer.utilisation import Utilisation, peak_flops

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("AMD Instinct MI300X", 1307),
    ],
)
def test_peaks_by_name(name: str, tera: float) -> None:
    assert peak_flops(name) == tera * 1e12


def test_a_device_nobody_knows_has_no_mfu(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_run_config(QUICKSTART)
    ranks = Ranks(0, 2, torch.device("cpu"))
    found = Utilisation(config, ranks).metrics(400.0)
    assert found["speed/samples_per_second_per_process"] == 200
    assert found["speed/model_tflops_per_process"] == pytest.approx(
        200 * training_flops(config.model, config.data.words) / 1e12
    )
    assert "speed/mfu" not in found
    monkeypatch.setattr("segclip.trainer.utilisation.PEAKS", (("cpu", 0.5),))
    with_peak = Utilisation(config, ranks).metrics(400.0)
    assert with_peak["speed/mfu"] == pytest.approx(found["speed/model_tflops_per_process"] / 0.5)
