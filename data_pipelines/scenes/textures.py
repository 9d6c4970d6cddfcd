"""Procedural grounds: tileable pictures of sand, grass, water and brick.

Each painter returns a uint8 picture [side, side, 3] that wraps around at its edges, so that a random window
of it, taken modulo its side, is a fresh piece of ground. ``scale`` is the side of the picture that will be
cut from it: the grain of a texture is proportional to it, so a scene looks alike at every resolution.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from segclip.keyed_random import Purpose, uniform_numpy

__all__ = ["GROUNDS", "VARIANTS", "texture_bank"]

GROUNDS = ("sand", "grass", "water", "brick")
VARIANTS = 6
# Scenes are numbered from 0, so textures draw their noise from positions that no scene reaches.
_FIRST_POSITION = 2**48

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


@lru_cache(maxsize=4)
def texture_bank(scale: int) -> tuple[tuple[Bytes, ...], ...]:
    """All variants of all grounds, ``bank[ground][variant]``: uint8 [2 * scale, 2 * scale, 3]. Painted once a
    process."""
    painters = (_sand, _grass, _water, _brick)
    bank = []
    for ground, paint in enumerate(painters):
        noises = (
            _Noise(_FIRST_POSITION + ground * VARIANTS + variant, 2 * scale) for variant in range(VARIANTS)
        )
        bank.append(tuple(np.clip(paint(noise, scale), 0, 255).astype(np.uint8) for noise in noises))
    return tuple(bank)


class _Noise:
    """Smooth periodic random fields of one texture, each with mean 0 and standard deviation 1."""

    def __init__(self, position: int, side: int) -> None:
        self.side = side
        self.position = position
        self.drawn = 0

    def numbers(self, count: int) -> Floats:
        """``count`` uniform numbers in (0, 1)."""
        self.drawn += 1
        return uniform_numpy(self.drawn, Purpose.SCENE, self.position, count)[0]

    def field(self, sigma_y: float, sigma_x: float) -> Floats:
        """White noise blurred by a Gaussian of ``sigma_y`` by ``sigma_x`` pixels, wrapped around: [side,
        side]."""
        white = self.numbers(self.side * self.side).reshape(self.side, self.side) - 0.5
        fy, fx = np.fft.fftfreq(self.side)[:, None], np.fft.rfftfreq(self.side)[None, :]
        blur = np.exp(-2 * np.pi**2 * ((sigma_y * fy) ** 2 + (sigma_x * fx) ** 2))
        field = np.fft.irfft2(np.fft.rfft2(white) * blur, s=(self.side, self.side))
        return np.asarray((field - field.mean()) / field.std(), dtype=np.float32)


def _mix(low: tuple[int, int, int], high: tuple[int, int, int], weight: Floats) -> Floats:
    """Colour between ``low`` (weight 0) and ``high`` (weight 1): [side, side, 3]."""
    weight_HW1 = np.clip(weight, 0, 1)[..., None]
    return np.asarray(low, np.float32) * (1 - weight_HW1) + np.asarray(high, np.float32) * weight_HW1


def _coordinates(side: int) -> tuple[Floats, Floats]:
    """Rows [side, 1] and columns [1, side] in units of the whole side."""
    axis: Floats = ((np.arange(side) + 0.5) / side).astype(np.float32)
    return axis[:, None], axis[None, :]


def _sand(noise: _Noise, scale: int) -> Floats:
    """Pale tan, wind ripples bent by a slow field, fine grain."""
    unit = scale / 96
    y, x = _coordinates(noise.side)
    waves = 14 + int(noise.numbers(1)[0] * 6)
    bend = noise.field(16 * unit, 22 * unit)
    ripples = np.sin(2 * np.pi * (waves * y + 2 * x) + 1.6 * bend)
    dunes = noise.field(24 * unit, 24 * unit)
    grain = noise.field(0.6 * unit, 0.6 * unit)
    return _mix((196, 166, 118), (236, 212, 168), 0.5 + 0.17 * ripples + 0.12 * dunes + 0.07 * grain)


def _grass(noise: _Noise, scale: int) -> Floats:
    """Upright blades: streaks of two lengths over darker and lighter patches."""
    unit = scale / 96
    blades = noise.field(3.2 * unit, 0.75 * unit)
    tufts = noise.field(6 * unit, 1.6 * unit)
    patches = noise.field(14 * unit, 14 * unit)
    green = _mix((34, 92, 30), (128, 186, 66), 0.45 + 0.17 * blades + 0.12 * tufts + 0.08 * patches)
    return green + np.clip(patches, -1, 1)[..., None] * np.asarray((7, 2, -3), np.float32)


def _water(noise: _Noise, scale: int) -> Floats:
    """Blue, long horizontal swells, thin bright lines where two of them meet."""
    unit = scale / 96
    swell = noise.field(3.5 * unit, 11 * unit)
    deep = noise.field(14 * unit, 26 * unit)
    glints = np.exp(-((noise.field(3.0 * unit, 9 * unit) / 0.16) ** 2))
    blue = _mix((14, 74, 140), (62, 148, 204), 0.45 + 0.2 * swell + 0.12 * deep)
    return blue + (glints * 46)[..., None] * np.asarray((0.75, 0.9, 1.0), np.float32)


def _brick(noise: _Noise, scale: int) -> Floats:
    """A running bond of brown bricks, each of its own tone, with pale joints."""
    unit = scale / 96
    rows, columns = 20, 8  # over the double side: ten courses and four bricks to a scene
    y, x = _coordinates(noise.side)
    wobble = noise.field(5 * unit, 5 * unit) * 0.02
    course = np.floor(y * rows + wobble).astype(np.int64) % rows
    along = x * columns + 0.5 * (course % 2) + wobble
    brick = np.floor(along).astype(np.int64) % columns
    tone = noise.numbers(rows * columns).reshape(rows, columns)[course, brick]
    # Distance to the nearest joint in pixels, horizontally and vertically; a joint is about two pixels wide.
    to_bed = np.abs((y * rows + wobble + 0.5) % 1 - 0.5) * noise.side / rows
    to_head = np.abs((along + 0.5) % 1 - 0.5) * noise.side / columns
    joint = np.clip(1.35 - np.minimum(to_bed, to_head) / unit, 0, 1)
    grain = noise.field(0.8 * unit, 1.2 * unit)
    clay = _mix((112, 58, 42), (168, 98, 70), 0.15 + 0.7 * tone + 0.08 * grain)
    mortar = np.asarray((182, 170, 156), np.float32) + 5 * grain[..., None]
    return clay * (1 - joint[..., None]) + mortar * joint[..., None]
