"""Colours that stay apart for readers with any kind of colour vision."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["Colour", "distances", "named_colours", "palette", "readable_on"]

Colour = tuple[int, int, int]

# Okabe and Ito's set (2008) without black, made for readers with and without colour blindness.
_FIRST: tuple[Colour, ...] = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0),
    (204, 121, 167),
)  # fmt: skip

# Machado, Oliveira and Fernandes (2009), full severity, linear RGB: no change, protan, deutan, tritan.
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


# Names that already say a colour are drawn in it: a blue "red square" would mislead.
_NATURAL: dict[str, Colour] = {
    "red": (215, 40, 40), "orange": (240, 140, 20), "yellow": (250, 220, 40), "green": (40, 150, 60),
    "blue": (40, 90, 200), "purple": (130, 50, 170), "violet": (130, 50, 170), "pink": (240, 140, 190),
    "brown": (120, 75, 40), "black": (50, 50, 50), "white": (248, 248, 248), "grey": (140, 140, 140),
    "gray": (140, 140, 140), "sand": (222, 195, 140), "grass": (110, 170, 60), "tree": (40, 110, 50),
    "water": (70, 150, 210), "sea": (40, 110, 170), "sky": (135, 200, 250), "brick": (165, 90, 65),
    "snow": (235, 242, 250), "wood": (150, 105, 60),
}  # fmt: skip
_APART = 13.0  # CIELAB distance below which neighbouring tints are hard to tell apart


@lru_cache(maxsize=1)
def _candidates() -> NDArray[np.float64]:
    """[N, 3] colours to choose from: neither too dark to write on nor too near to paper."""
    steps = np.linspace(30, 250, 12).round()
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    lightness = _lab(grid)[0, :, 0]
    return np.asarray(grid[(lightness > 26) & (lightness < 97)])


def _colour(values: NDArray[np.float64]) -> Colour:
    red, green, blue = (int(value) for value in values)
    return red, green, blue


def palette(count: int) -> tuple[Colour, ...]:
    """``count`` colours, the first ones always the same, each as far as can be from all before it."""
    return named_colours(tuple(str(number) for number in range(count)))


@lru_cache(maxsize=32)
def named_colours(names: tuple[str, ...]) -> tuple[Colour, ...]:
    """A colour for each name, all told apart by readers with any kind of colour vision as far as the number
    allows.

    Names with a colour (or a thing of one colour, such as grass) in them get a shade of it; the others get
    what is farthest from all colours chosen so far, starting with a well-tried set of seven.
    """
    grid = _candidates()
    nearest = np.full(len(grid), np.inf)
    chosen: dict[int, Colour] = {}

    def take(number: int, colour: Colour) -> None:
        chosen[number] = colour
        own = np.array([colour], dtype=np.float64)
        nearest[:] = np.minimum(nearest, distances(grid, own)[:, 0])

    def clear_of_all(colour: Colour) -> bool:
        others = np.array(list(chosen.values()), dtype=np.float64).reshape(-1, 3)
        return bool((distances(np.array([colour], dtype=np.float64), others) >= _APART).all())

    wanted = {number: _natural(name) for number, name in enumerate(names)}
    for number, natural in wanted.items():
        if natural is None:
            continue
        if clear_of_all(natural):
            take(number, natural)
            continue
        away = np.linalg.norm(_lab(grid)[0] - _lab(np.array([natural], dtype=np.float64))[0], axis=-1)
        free = nearest >= _APART
        best = np.where(free, away, np.inf).argmin() if free.any() else nearest.argmax()
        take(number, _colour(grid[int(best)]))
    tried = iter(_FIRST)
    for number, natural in wanted.items():
        if natural is not None:
            continue
        colour = next((each for each in tried if clear_of_all(each)), None)
        take(number, colour or _colour(grid[int(nearest.argmax())]))
    return tuple(chosen[number] for number in range(len(names)))


def _natural(name: str) -> Colour | None:
    return next((_NATURAL[word] for word in name.lower().split() if word in _NATURAL), None)


def readable_on(colour: Colour) -> Colour:
    """Black or white, whichever stands out more on ``colour``."""
    red, green, blue = colour
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)
