"""CLIP's two-layer perceptron, with its activation computed in one pass over memory.

QuickGELU(x) = x sigmoid(a x) = SiLU(a x) / a with a = 1.702. The factors are multiplied into the weights
around the activation, which are small beside the activations: torch then has one fused operation to run and
one tensor to keep for the backward pass, where the written-out form has three and two.
"""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["FACTOR", "ScaledLinear", "quick_gelu_mlp"]

FACTOR = 1.702


class ScaledLinear(nn.Linear):
    """A linear layer whose weight, and bias if told so, is used times a constant."""

    def __init__(self, inputs: int, outputs: int, factor: float, scale_bias: bool) -> None:
        super().__init__(inputs, outputs)
        self.factor = factor
        self.scale_bias = scale_bias

    def forward(self, input: Tensor) -> Tensor:
        """``input`` times the scaled weight."""
        bias = self.bias * self.factor if self.scale_bias else self.bias
        return F.linear(input, self.weight * self.factor, bias)


def quick_gelu_mlp(width: int, names: tuple[str, str] = ("fc1", "fc2")) -> nn.Sequential:
    """``width`` -> 4 ``width`` -> QuickGELU -> ``width``; parameters are those of two plain linear layers.

    Args:
        names: of the two layers.
    """
    return nn.Sequential(
        OrderedDict(
            [
                (names[0], ScaledLinear(width, 4 * width, FACTOR, scale_bias=True)),
                ("act", nn.SiLU()),
                (names[1], ScaledLinear(4 * width, width, 1 / FACTOR, scale_bias=False)),
            ]
        )
    )
