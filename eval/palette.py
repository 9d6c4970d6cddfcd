"""Colours that stay apart for readers with any kind of colour vision."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["Colour", "distances", "palette", "readable_on"]

Colour = tuple[int, int, int]

# Okabe and Ito's set (2008) without black: made to be told apart with protanopia, deuteranopia and tritanopia.
_FIRST: tuple[Colour, ...] = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
)  # fmt: skip

# Machado, Oliveira and Fernandes (2009), full severity, on linear RGB: no change, protan, deutan, tritan.
_VISION: NDArray[np.float64] = np.array(
    [
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    ]
)
_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
_WHITE = np.array([0.9505, 1.0, 1.089])


def _lab(colours_N3: NDArray[np.float64]) -> NDArray[np.float64]:
    """CIELAB [4, N, 3] of sRGB colours in 0..255 as each of the four kinds of vision sees them."""
    srgb = colours_N3 / 255.0
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.einsum("vij,nj->vni", _VISION, linear), 0, 1)
    ratio = seen @ _XYZ.T / _WHITE
    f = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


def distances(first_N3: NDArray[np.float64], second_M3: NDArray[np.float64]) -> NDArray[np.float64]:
    """[N, M] CIELAB distance of colours to whoever sees the two as most alike."""
    apart = np.linalg.norm(_lab(first_N3)[:, :, None] - _lab(second_M3)[:, None], axis=-1)
    return np.asarray(apart.min(axis=0))


@lru_cache(maxsize=8)
def palette(count: int) -> tuple[Colour, ...]:
    """``count`` colours, the first ones always the same, each as far as can be from all before it."""
    steps = np.linspace(30, 250, 11).round()
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    chosen = [np.array(colour, dtype=np.float64) for colour in _FIRST[:count]]
    if count > len(_FIRST):
        lightness = _lab(grid)[0, :, 0]
        grid = grid[(lightness > 28) & (lightness < 92)]
        nearest = distances(grid, np.stack(chosen)).min(axis=1)
        while len(chosen) < count:
            chosen.append(grid[int(nearest.argmax())])
            nearest = np.minimum(nearest, distances(grid, chosen[-1][None])[:, 0])
    return tuple((int(r), int(g), int(b)) for r, g, b in chosen)


def readable_on(colour: Colour) -> Colour:
    """Black or white, whichever stands out more on ``colour``."""
    red, green, blue = colour
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)
