from __future__ import annotations

import torch
import torch.nn.functional as F

from segclip.models.mlp import quick_gelu_mlp


def test_equals_the_written_out_form() -> None:
    mlp = quick_gelu_mlp(8, names=("a", "b")).double()
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    hidden = F.linear(x, mlp.a.weight, mlp.a.bias)
    expected = F.linear(hidden * torch.sigmoid(1.702 * hidden), mlp.b.weight, mlp.b.bias)
    got = mlp(x)
    torch.testing.assert_close(got, expected)
    inputs = [x, *mlp.parameters()]
    weight = torch.randn_like(got)
    for found, reference in zip(
        torch.autograd.grad(got, inputs, weight), torch.autograd.grad(expected, inputs, weight), strict=True
    ):
        torch.testing.assert_close(found, reference)


def test_names_and_shapes() -> None:
    shapes = {name: tuple(parameter.shape) for name, parameter in quick_gelu_mlp(4).named_parameters()}
    assert shapes == {"fc1.weight": (16, 4), "fc1.bias": (16,), "fc2.weight": (4, 16), "fc2.bias": (4,)}
