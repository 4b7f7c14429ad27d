"""Scenes of two colored shapes: which combinations a split shows, and where.

Coordinates are fractions of the image's side: x from left to right, y from top to bottom, both in 0..1. Only `random()`
of Python's generator is used, since Python keeps its numbers the same across versions.
"""

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

RGB = tuple[int, int, int]
Combination = tuple[str, str]  # color, shape
Kind = tuple[Combination, Combination, str]  # first, second, axis

COLORS: dict[str, RGB] = {
    "red": (214, 34, 40),
    "orange": (240, 126, 20),
    "yellow": (246, 216, 20),
    "green": (36, 150, 60),
    "blue": (32, 84, 214),
    "purple": (110, 40, 160),
    "pink": (244, 130, 190),
    "black": (28, 28, 30),
}
SHAPES = ("circle", "star", "square", "heart", "triangle", "ring", "cross", "diamond")
RADII = {"small": 0.1, "large": 0.19}
AXES = ("beside", "above")
BANDS = {"low": 0.26, "middle": 0.5, "high": 0.74}

# Each color and each shape once: a diagonal of the 8 x 8 table, so that training shows all of both.
HELD_OUT = frozenset(zip(COLORS, SHAPES, strict=True))

_CENTER_JITTER = 0.02  # large shapes stay apart and inside the image
_MAX_TILT = math.radians(10)  # a square does not become a diamond
_RGB_JITTER = 10


class PlacedShape(NamedTuple):
    """One shape in an image."""

    color: str
    shape: str
    size: str
    x: float
    y: float
    radius: float
    angle: float  # radians
    rgb: RGB


class Scene(NamedTuple):
    """Content of an image.

    Attributes:
        first: the left one of two shapes "beside" each other, or the upper one of two "above" each other.
        second: the other shape.
        axis: "beside" or "above".
        band: position of both across the axis: "low" (top or left), "middle" or "high".
        background: color of the background.
    """

    first: PlacedShape
    second: PlacedShape
    axis: str
    band: str
    background: RGB


def kinds_of(split: str, seed: int) -> list[Kind]:
    """Return every first and second combination and axis that a split may show, in random order."""
    combinations = [(color, shape) for color in COLORS for shape in SHAPES]
    held_out = split != "train"
    kinds = [
        (first, second, axis)
        for first in combinations
        for second in combinations
        for axis in AXES
        if first != second and (first in HELD_OUT or second in HELD_OUT) == held_out
    ]
    rng = random.Random(f"{seed}/{'held out' if held_out else 'train'}")
    keys = [rng.random() for _ in kinds]
    order = [kinds[index] for index in sorted(range(len(kinds)), key=keys.__getitem__)]
    half = len(order) // 2
    return {"train": order, "val": order[:half], "test": order[half:]}[split]


def compose(kind: Kind, rng: random.Random) -> Scene:
    """Draw sizes, positions, tilts and color variations for the two combinations of a kind."""
    first, second, axis = kind
    band = choose(rng, tuple(BANDS))
    shapes = [_place(pair, axis, along, BANDS[band], rng) for pair, along in ((first, 0.25), (second, 0.75))]
    light = 228 + 20 * rng.random()
    red, green, blue = (round(_around(rng, light, 7)) for _ in range(3))
    return Scene(shapes[0], shapes[1], axis, band, (red, green, blue))


def choose(rng: random.Random, options: Sequence[str]) -> str:
    """Draw one of some options."""
    return options[int(rng.random() * len(options))]


def _place(pair: Combination, axis: str, along: float, across: float, rng: random.Random) -> PlacedShape:
    color, shape = pair
    size = choose(rng, tuple(RADII))
    along, across = _around(rng, along, _CENTER_JITTER), _around(rng, across, _CENTER_JITTER)
    x, y = (along, across) if axis == "beside" else (across, along)
    radius = RADII[size] * _around(rng, 1.0, 0.08)
    angle = _around(rng, 0.0, _MAX_TILT)
    red, green, blue = (min(255, max(0, round(_around(rng, value, _RGB_JITTER)))) for value in COLORS[color])
    return PlacedShape(color, shape, size, x, y, radius, angle, (red, green, blue))


def _around(rng: random.Random, center: float, jitter: float) -> float:
    return center + (2 * rng.random() - 1) * jitter
