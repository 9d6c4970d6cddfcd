"""Captioned scenes: small pictures of coloured shapes on textured grounds, with their label maps.

A scene holds one to three objects, none hiding another, each large enough to cover several patches of a small
network. Everything about scene ``i`` of seed ``s`` is a function of (s, i); nothing depends on which process
draws it or on what was drawn before. Textures and anti-aliased shapes are painted once a process and then
only pasted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from segclip.data_pipelines.scenes.textures import GROUNDS, VARIANTS, texture_bank
from segclip.keyed_random import Purpose, uniform_numpy

__all__ = [
    "CLASSES",
    "COLOURS",
    "DEFAULT_SIZE",
    "GROUNDS",
    "SHAPES",
    "Scene",
    "SceneObject",
    "caption_of",
    "class_index",
    "draw_scenes",
    "render",
]

COLOURS = {"red": (224, 32, 40), "yellow": (252, 220, 30), "white": (250, 250, 250), "purple": (138, 44, 172)}
SHAPES = ("circle", "bar", "star")
CLASSES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES) + GROUNDS
"""The 16 names a label map refers to by index: 12 objects, then 4 grounds."""

DEFAULT_SIZE = 96
MIN_SIZE = 32
OBJECT_CLASSES = len(COLOURS) * len(SHAPES)
MAX_OBJECTS = 3
NUMBER_CHANCES = (0.5, 0.35, 0.15)  # of one, two and three objects in a scene
# Radius of an object as a share of the picture's side, by the number of objects in the scene.
RADII = {1: (0.27, 0.37), 2: (0.21, 0.26), 3: (0.18, 0.20)}
BRIGHTNESS_STEPS = 7
REACH = 1.22  # no shape reaches further from its centre than this many radii
BANDS = 5  # across a bar
SHADE = 0.62  # light of the darker bands and facets; at 0.78 shapes are learnt hundreds of steps later
PUSHES = 24  # rounds in which overlapping objects move apart
ROTATIONS = {"circle": (0.0, 1), "bar": (40.0, 9), "star": (72.0, 12)}  # range in degrees, steps
_COLOUR_NAMES = tuple(COLOURS)
_DRAWS = 1 + 1 + OBJECT_CLASSES + 5 + 2 * MAX_OBJECTS + 2 * MAX_OBJECTS


@dataclass(frozen=True)
class SceneObject:
    """One shape: its name parts, centre and radius as shares of the side, and its rotation step."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float
    rotation: int

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """What a picture shows. ``window`` is the piece of texture: variant, row, column (shares), mirrored,
    brightness."""

    index: int
    objects: tuple[SceneObject, ...]
    ground: str
    window: tuple[int, float, float, bool, int]

    @property
    def caption(self) -> str:
        return caption_of([each.name for each in self.objects], self.ground)

    def metadata(self) -> dict[str, object]:
        """The content of ``KEY.json``."""
        objects = [
            {
                "name": each.name,
                "colour": each.colour,
                "shape": each.shape,
                "centre": [round(each.x, 4), round(each.y, 4)],
                "radius": round(each.radius, 4),
            }
            for each in self.objects
        ]
        return {"caption": self.caption, "objects": objects, "ground": self.ground}


def class_index(name: str) -> int:
    """Index of a class name in ``CLASSES``."""
    return CLASSES.index(name)


def caption_of(names: Sequence[str], ground: str) -> str:
    """``a red circle, a white star and a purple bar on sand``."""
    phrases = [f"a {name}" for name in names]
    listed = phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"
    return f"{listed} on {ground}"


def draw_scenes(seed: int, start: int, count: int) -> list[Scene]:
    """Scenes ``start .. start + count - 1`` of ``seed``."""
    draws = uniform_numpy(seed, Purpose.SCENE, np.arange(start, start + count), _DRAWS).astype(np.float64)
    number, ground, kinds, window, sizes, places = np.split(
        draws, np.cumsum((1, 1, OBJECT_CLASSES, 5, 2 * MAX_OBJECTS)), axis=1
    )
    number_B = 1 + np.searchsorted(np.cumsum(NUMBER_CHANCES[:-1]), number[:, 0])
    kinds_BO = np.argsort(kinds, axis=1)[:, :MAX_OBJECTS]  # distinct classes within a scene
    low_B, high_B = np.array([(0.0, 0.0), *RADII.values()])[number_B].T
    radius_BO = low_B[:, None] + (high_B - low_B)[:, None] * sizes[:, :MAX_OBJECTS]
    centre_BOX, radius_BO = _lay_out(places.reshape(count, MAX_OBJECTS, 2), radius_BO, number_B)
    scenes = []
    for b in range(count):
        objects = []
        for o in range(number_B[b]):
            colour, shape = divmod(int(kinds_BO[b, o]), len(SHAPES))
            steps = ROTATIONS[SHAPES[shape]][1]
            objects.append(
                SceneObject(
                    colour=_COLOUR_NAMES[colour],
                    shape=SHAPES[shape],
                    x=float(centre_BOX[b, o, 0]),
                    y=float(centre_BOX[b, o, 1]),
                    radius=float(radius_BO[b, o]),
                    rotation=int(sizes[b, MAX_OBJECTS + o] * steps),
                )
            )
        cut = window[b]
        piece = (
            int(cut[0] * VARIANTS),
            float(cut[1]),
            float(cut[2]),
            bool(cut[3] < 0.5),
            int(cut[4] * BRIGHTNESS_STEPS),
        )
        scenes.append(Scene(start + b, tuple(objects), GROUNDS[int(ground[b, 0] * len(GROUNDS))], piece))
    return scenes


def _lay_out(
    places_BOX: NDArray[np.float64], radius_BO: NDArray[np.float64], number_B: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centres [B, O, 2] and radii [B, O] such that objects are inside the picture and apart.

    Objects start at uniform places [B, O, 2] and push each other away for some rounds; where a pair still
    overlaps after that, the objects of that scene are shrunk until they do not.
    """
    reach_BO = REACH * radius_BO
    margin_BO1 = reach_BO[:, :, None]
    centre_BOX = margin_BO1 + (1 - 2 * margin_BO1) * places_BOX
    pairs = [(i, j) for i in range(MAX_OBJECTS) for j in range(i)]
    for _ in range(PUSHES):
        for i, j in pairs:
            between_BX = centre_BOX[:, i] - centre_BOX[:, j]
            distance_B = np.hypot(between_BX[:, 0], between_BX[:, 1]) + 1e-6
            overlap_B = 1.02 * (reach_BO[:, i] + reach_BO[:, j]) - distance_B
            push_B = np.where((overlap_B > 0) & (number_B > i), 0.5 * overlap_B / distance_B, 0)
            centre_BOX[:, i] += push_B[:, None] * between_BX
            centre_BOX[:, j] -= push_B[:, None] * between_BX
        centre_BOX = np.clip(centre_BOX, margin_BO1, 1 - margin_BO1)
    fit_B = np.ones(len(number_B))
    for i, j in pairs:
        distance_B = np.hypot(*(centre_BOX[:, i] - centre_BOX[:, j]).T)
        fit_B = np.where(
            number_B > i, np.minimum(fit_B, distance_B / (reach_BO[:, i] + reach_BO[:, j])), fit_B
        )
    return centre_BOX, radius_BO * fit_B[:, None]


def render(scene: Scene, size: int = DEFAULT_SIZE) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Paint a scene.

    Args:
        scene: what to paint.
        size: side in pixels, at least 32.

    Returns:
        Picture uint8 [size, size, 3] and label map uint8 [size, size] with indices into ``CLASSES``.
    """
    if size < MIN_SIZE:
        raise ValueError(f"scene size {size} is too small: objects need a side of at least {MIN_SIZE} pixels")
    ground = GROUNDS.index(scene.ground)
    variant, row, column, mirrored, brightness = scene.window
    texture = _lit_texture(size, ground, variant, brightness)
    top, left = int(row * size), int(column * size)
    piece = texture[top : top + size, left : left + size]
    if mirrored:
        piece = piece[:, ::-1]
    picture_HW3 = piece.copy()
    labels_HW = np.full((size, size), OBJECT_CLASSES + ground, dtype=np.uint8)
    for each in scene.objects:
        stamp = _stamp(each.shape, max(1, round(each.radius * size)), each.rotation)
        half = stamp.inside.shape[0] // 2
        y, x = round(each.y * size) - half, round(each.x * size) - half
        rows, columns = slice(max(y, 0), min(y + 2 * half, size)), slice(max(x, 0), min(x + 2 * half, size))
        cut = (slice(rows.start - y, rows.stop - y), slice(columns.start - x, columns.stop - x))
        region = picture_HW3[rows, columns].astype(np.float32) * stamp.through[cut]
        region += stamp.paint(each.colour)[cut]
        picture_HW3[rows, columns] = region.astype(np.uint8)
        labels_HW[rows, columns][stamp.inside[cut]] = class_index(each.name)
    return picture_HW3, labels_HW


@lru_cache(maxsize=len(GROUNDS) * VARIANTS * BRIGHTNESS_STEPS)
def _lit_texture(size: int, ground: int, variant: int, brightness: int) -> NDArray[np.uint8]:
    """A texture of the bank in evening light: darker and softer, by a little more or less."""
    gain = 0.58 + 0.16 * brightness / (BRIGHTNESS_STEPS - 1)
    texture = texture_bank(size)[ground][variant].astype(np.float32)
    mean = texture.mean(axis=(0, 1))
    lit = (mean + 0.7 * (texture - mean)) * np.float32(gain)
    return np.clip(lit, 0, 255).astype(np.uint8)


class _Stamp:
    """A shape painted once: what of the ground shows through, the shape's own light, and which pixels it
    owns."""

    def __init__(
        self,
        distance: NDArray[np.float32],
        shadow_distance: NDArray[np.float32],
        relief: NDArray[np.float32],
        radius: int,
    ) -> None:
        alpha = np.clip(0.5 - distance, 0, 1)
        softness = max(1.0, 0.16 * radius)
        shadow = 0.34 * np.clip(0.5 - shadow_distance / softness, 0, 1)
        half = distance.shape[0] / 2
        height = (np.arange(distance.shape[0], dtype=np.float32)[:, None] + 0.5 - half) / radius
        light = (
            relief * (1.0 - 0.10 * height) * (1 - 0.22 * np.clip(1 + distance / (0.12 * radius + 1), 0, 1))
        )
        self.inside = distance < 0
        self.through = ((1 - alpha) * (1 - shadow))[..., None].astype(np.float32)
        self._light = (alpha * light)[..., None].astype(np.float32)
        self._painted: dict[str, NDArray[np.float32]] = {}

    def paint(self, colour: str) -> NDArray[np.float32]:
        """The shape in ``colour``, to be added to what shows through: float32 [side, side, 3]."""
        if colour not in self._painted:
            lit = np.clip(self._light * np.asarray(COLOURS[colour], np.float32), 0, 255)
            self._painted[colour] = lit.astype(np.float32)
        return self._painted[colour]


@lru_cache(maxsize=2048)
def _stamp(shape: str, radius: int, rotation: int) -> _Stamp:
    half = int(np.ceil((REACH + 0.22) * radius)) + 1
    axis = np.arange(2 * half, dtype=np.float32) + 0.5 - half
    span, steps = ROTATIONS[shape]
    angle = np.deg2rad((rotation + 0.5) / steps * span - span / 2)
    offset = 0.09 * radius
    return _Stamp(
        _distance(shape, axis[None, :], axis[:, None], radius, angle),
        _distance(shape, axis[None, :] - offset, axis[:, None] - 1.4 * offset, radius, angle),
        _relief(shape, axis[None, :], axis[:, None], radius, angle),
        radius,
    )


def _turned(
    x: NDArray[np.float32], y: NDArray[np.float32], angle: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Coordinates along the axes of a shape turned by ``angle``."""
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def _relief(
    shape: str, x: NDArray[np.float32], y: NDArray[np.float32], radius: int, angle: float
) -> NDArray[np.float32]:
    """How light each pixel of a shape is: a circle is a ball, a bar is banded, a star has facets.

    What a shape is shows all over it, not along its outline alone: a few thousand pictures must teach it.
    """
    if shape == "circle":
        from_highlight = np.hypot(x + 0.35 * radius, y + 0.35 * radius) / radius
        return np.asarray(np.clip(1.08 - 0.3 * from_highlight, 0, 1), dtype=np.float32)
    x, y = _turned(x, y, angle)
    if shape == "bar":
        band = np.floor((x / (1.14 * radius) + 1) * BANDS / 2) % 2 + 0 * y
    else:
        sector = np.pi / 5
        band = np.floor(np.arctan2(x, -y) / sector) % 2
    return np.where(band == 0, 1.0, SHADE).astype(np.float32)


def _distance(
    shape: str, x: NDArray[np.float32], y: NDArray[np.float32], radius: int, angle: float
) -> NDArray[np.float32]:
    """Signed distance in pixels to the outline of a shape, negative inside."""
    x, y = _turned(x, y, angle)
    if shape == "circle":
        return np.asarray(np.hypot(x, y) - radius, dtype=np.float32)
    if shape == "bar":
        rounding = 0.12 * radius
        dx, dy = np.abs(x) - (1.14 * radius - rounding), np.abs(y) - (0.52 * radius - rounding)
        outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0))
        return np.asarray(outside + np.minimum(np.maximum(dx, dy), 0) - rounding, dtype=np.float32)
    return _star_distance(x, y, REACH * radius, 0.54)


def _star_distance(
    x: NDArray[np.float32], y: NDArray[np.float32], outer: float, inner_share: float
) -> NDArray[np.float32]:
    """Five-pointed star with a tip straight up: fold the plane into one tenth, then measure to one straight
    edge."""
    sector = np.pi / 5
    theta = np.arctan2(x, -y)
    folded = np.abs((theta + sector) % (2 * sector) - sector)
    length = np.hypot(x, y)
    px, py = length * np.sin(folded), length * np.cos(folded)
    tip_y = outer
    notch_x, notch_y = outer * inner_share * np.sin(sector), outer * inner_share * np.cos(sector)
    edge_x, edge_y = notch_x, notch_y - tip_y
    along = np.clip((px * edge_x + (py - tip_y) * edge_y) / (edge_x**2 + edge_y**2), 0, 1)
    nearest = np.hypot(px - along * edge_x, py - tip_y - along * edge_y)
    side = edge_x * (py - tip_y) - edge_y * px
    return np.asarray(np.where(side > 0, nearest, -nearest), dtype=np.float32)
