"""What the benchmarks time is right: kernels against plain torch at their full sizes, one sample."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu_kernels import check
from benchmarks.kernel_cases import MAKERS, superpixel_kl_cases


@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__)
def test_kernel_and_definition_agree(maker, device) -> None:
    torch.manual_seed(0)
    for case in maker(1, device, torch.bfloat16):
        check(case)
        assert case.least_bytes or case.operations


def test_a_wrong_kernel_is_not_timed(device) -> None:
    from dataclasses import replace

    case = superpixel_kl_cases(1, device, torch.bfloat16)[0]
    wrong = replace(case, kernel=lambda *inputs: case.reference(*inputs) * 1.1)
    with pytest.raises(RuntimeError, match=r"superpixel_kl .* away from plain torch"):
        check(wrong)
