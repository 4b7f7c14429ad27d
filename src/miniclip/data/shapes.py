"""The embedded default data set: two coloured shapes on a plain ground, drawn here, with compositional captions.

It needs no download, and its validation score means something: the pictures of `val` and `test` show combinations of
colour and shape that no picture of `train` shows, so a model that learnt whole pictures by heart finds none of them,
and one that learnt what "red" and what "heart" looks like does. The idea of held-out combinations with synthetic
shapes is that of CLEVR's CoGenT split (Johnson et al. 2017, "CLEVR").

Coordinates are shares of the picture's side: x from left to right, y from top to bottom, both in 0..1.
"""

import math
import random
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from PIL import Image, ImageDraw

from miniclip.data.dataset import checked_index

RGB = tuple[int, int, int]
Points = list[tuple[float, float]]

COLOURS: dict[str, RGB] = {
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
SIZES = {"small": 0.1, "large": 0.19}  # the radius

# Each colour and each shape once: a diagonal of the 8 x 8 table, so that training sees all of both.
HELD_OUT = frozenset(zip(COLOURS, SHAPES, strict=True))

DEFAULT_SIZES = {"train": 6000, "val": 500, "test": 500}

_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
_RELATIONS = {  # the first object to the second, and the second to the first
    "beside": (("to the left of", "left of"), ("to the right of", "right of")),
    "above": (("above", "over"), ("below", "under")),
}
_PLACES = {  # by axis and band: where the first object is, where the second is
    ("beside", "low"): ("at the top left", "at the top right"),
    ("beside", "middle"): ("on the left", "on the right"),
    ("beside", "high"): ("at the bottom left", "at the bottom right"),
    ("above", "low"): ("at the top left", "at the bottom left"),
    ("above", "middle"): ("at the top", "at the bottom"),
    ("above", "high"): ("at the top right", "at the bottom right"),
}
_PAIR_PLACES = {  # by axis and band: where the two are together
    ("beside", "low"): "side by side at the top",
    ("beside", "middle"): "side by side in the middle",
    ("beside", "high"): "side by side at the bottom",
    ("above", "low"): "one above the other on the left",
    ("above", "middle"): "one above the other in the middle",
    ("above", "high"): "one above the other on the right",
}
_SIDES = {"beside": ("on the left", "on the right"), "above": ("at the top", "at the bottom")}
_BANDS = {"low": 0.26, "middle": 0.5, "high": 0.74}

_JITTER = 0.02  # of a centre, each way: large shapes stay apart and inside
_TILT = math.radians(10)  # of a shape, each way: a square stays a square and no diamond
_TINT = 10  # of each channel of a colour, each way

Pair = tuple[str, str]
Kind = tuple[Pair, Pair, str]


class Thing(NamedTuple):
    """One shape in a picture."""

    colour: str
    shape: str
    size: str
    x: float
    y: float
    radius: float
    angle: float  # radians
    rgb: RGB


class Scene(NamedTuple):
    """What a picture shows.

    Attributes:
        first: the left one of two "beside" each other, or the upper one of two "above" each other.
        second: the other.
        axis: "beside" or "above".
        band: where the two are across the axis: "low" (the top, or the left), "middle" or "high".
        background: the ground's colour.
    """

    first: Thing
    second: Thing
    axis: str
    band: str
    background: RGB


class Shapes:
    """Pictures of two coloured shapes, each with five captions that name colours, shapes, sizes, places and relation.

    There are 8 colours, 8 shapes and 2 sizes; the two shapes of a picture are side by side or one above the other.
    Eight of the 64 combinations of colour and shape are held out, such that each colour and each shape is in just one
    of them (`HELD_OUT`: red circle, orange star, ...). No picture of `train` has any; every picture of `val` and of
    `test` has at least one. So the score on `val` is that of composition: known colours on known shapes, in pairs that
    training never showed.

    A picture and its captions depend on the seed, the split and the index alone (and its pixels on `image_size`), not
    on how many there are. Which two combinations it shows, in which order and along which axis, goes through all the
    possibilities before any comes again: 6,160 in `train`; in `val` and `test`, which share none, 952 each. So the
    captions of the default 500 pictures of `val` tell them apart, all but a few, and retrieval is not capped by twins.

    Args:
        split: "train", "val" or "test".
        size: the number of pictures; by default 6,000 in train and 500 in the others.
        image_size: the side of a picture in pixels, 16 or more.
        seed: of everything drawn.

    Raises:
        ValueError: there is no such split, or a size is too small.
    """

    def __init__(self, split: str = "train", size: int | None = None, *, image_size: int = 64, seed: int = 0) -> None:
        if split not in DEFAULT_SIZES:
            raise ValueError(f"no split {split!r}: Shapes has {', '.join(DEFAULT_SIZES)}")
        size = DEFAULT_SIZES[split] if size is None else size
        if size < 1:
            raise ValueError(f"size is {size}: give 1 picture or more")
        if image_size < 16:
            raise ValueError(f"image_size is {image_size}: give 16 pixels or more, or the shapes cannot be told apart")
        self.split = split
        self.image_size = image_size
        self.seed = seed
        self._kinds = _kinds(split, seed)
        self.captions: list[list[str]] = [_describe(*self._imagine(index)) for index in range(size)]

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> tuple[Image.Image, list[str]]:
        """Draw a picture; negative indices count from the end.

        Raises:
            IndexError: the index is out of range.
        """
        index = checked_index(index, len(self))
        return draw(self.scene(index), self.image_size), list(self.captions[index])

    def __repr__(self) -> str:
        return f"Shapes({self.split!r}, {len(self):,}, image_size={self.image_size}, seed={self.seed})"

    def scene(self, index: int) -> Scene:
        """What the picture shows, in words and numbers; raises IndexError as indexing does."""
        return self._imagine(checked_index(index, len(self)))[0]

    def _imagine(self, index: int) -> tuple[Scene, random.Random]:
        """The scene of a picture, and the generator that goes on to choose its captions' words."""
        rng = random.Random(f"{self.seed}/{self.split}/{index}")
        return _compose(self._kinds[index % len(self._kinds)], rng), rng


# What to show. Of Python's generator only random() is used, whose numbers Python promises to keep between versions.


def _kinds(split: str, seed: int) -> list[Kind]:
    """Every first and second combination and axis that the split may show, in an order drawn from the seed."""
    pairs = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    held_out = split != "train"
    kinds = [
        (first, second, axis)
        for first in pairs
        for second in pairs
        for axis in _RELATIONS
        if first != second and (first in HELD_OUT or second in HELD_OUT) == held_out
    ]
    rng = random.Random(f"{seed}/{'held out' if held_out else 'train'}")
    keys = [rng.random() for _ in kinds]
    order = [kinds[index] for index in sorted(range(len(kinds)), key=keys.__getitem__)]
    half = len(order) // 2
    return {"train": order, "val": order[:half], "test": order[half:]}[split]


def _pick(rng: random.Random, options: Sequence[str]) -> str:
    return options[int(rng.random() * len(options))]


def _around(rng: random.Random, centre: float, reach: float) -> float:
    return centre + (2 * rng.random() - 1) * reach


def _compose(kind: Kind, rng: random.Random) -> Scene:
    """Choose sizes, places, tilts and tints for the two combinations of a kind."""
    first, second, axis = kind
    band = _pick(rng, tuple(_BANDS))
    things = [_place(pair, axis, along, _BANDS[band], rng) for pair, along in ((first, 0.25), (second, 0.75))]
    light = 228 + 20 * rng.random()
    red, green, blue = (round(_around(rng, light, 7)) for _ in range(3))
    return Scene(things[0], things[1], axis, band, (red, green, blue))


def _place(pair: Pair, axis: str, along: float, across: float, rng: random.Random) -> Thing:
    colour, shape = pair
    size = _pick(rng, tuple(SIZES))
    along, across = _around(rng, along, _JITTER), _around(rng, across, _JITTER)
    x, y = (along, across) if axis == "beside" else (across, along)
    radius = SIZES[size] * _around(rng, 1.0, 0.08)
    angle = _around(rng, 0.0, _TILT)
    red, green, blue = (min(255, max(0, round(_around(rng, value, _TINT)))) for value in COLOURS[colour])
    return Thing(colour, shape, size, x, y, radius, angle, (red, green, blue))


# Captions


def _describe(scene: Scene, rng: random.Random) -> list[str]:
    """Write five captions: full, relation, places, sizes together, sides."""
    first, second, axis, band, _ = scene
    plain = [f"{thing.colour} {thing.shape}" for thing in (first, second)]
    full = [f"{_pick(rng, _WORDS[thing.size])} {name}" for thing, name in zip((first, second), plain, strict=True)]
    relations = [_pick(rng, options) for options in _RELATIONS[axis]]
    subject = int(rng.random() * 2)  # which of the two the first caption starts with; the second starts with the other
    other = 1 - subject
    places, together, sides = _PLACES[axis, band], _PAIR_PLACES[axis, band], _SIDES[axis]
    return [
        f"{_a(full[subject])} {relations[subject]} {_a(full[other])}",
        f"the {plain[other]} is {relations[other]} the {plain[subject]}",
        f"{_a(plain[0])} {places[0]} and {_a(plain[1])} {places[1]}",
        f"{_a(full[0])} and {_a(full[1])}, {together}",
        f"{sides[0]} {_a(full[0])}, {sides[1]} {_a(full[1])}",
    ]


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


# Drawing


def draw(scene: Scene, image_size: int) -> Image.Image:
    """Draw a scene as an RGB picture of `image_size` pixels a side, antialiased."""
    scale = 4 if image_size <= 96 else 2  # drawn larger, then averaged; large pictures need less of it
    side = image_size * scale
    image = Image.new("RGB", (side, side), scene.background)
    pencil = ImageDraw.Draw(image)
    for thing in (scene.first, scene.second):
        _draw_thing(pencil, thing, side, scene.background)
    return image.reduce(scale)


def _draw_thing(pencil: ImageDraw.ImageDraw, thing: Thing, side: int, background: RGB) -> None:
    x, y, radius = thing.x * side, thing.y * side, thing.radius * side
    if thing.shape in {"circle", "ring"}:
        _draw_disc(pencil, x, y, 0.92 * radius, thing.rgb)
        if thing.shape == "ring":
            _draw_disc(pencil, x, y, 0.5 * radius, background)
        return
    sine, cosine = radius * math.sin(thing.angle), radius * math.cos(thing.angle)
    outline = _outlines()[thing.shape]
    pencil.polygon([(x + u * cosine - v * sine, y + u * sine + v * cosine) for u, v in outline], fill=thing.rgb)


def _draw_disc(pencil: ImageDraw.ImageDraw, x: float, y: float, radius: float, rgb: RGB) -> None:
    pencil.ellipse((x - radius, y - radius, x + radius, y + radius), fill=rgb)


@cache
def _outlines() -> dict[str, Points]:
    """The corners of each shape with straight or traced sides, within the unit circle about its centre."""
    arm = 0.3  # half the width of the cross's bars
    quarter = [(-arm, -0.95), (arm, -0.95), (arm, -arm)]
    turns = ((1, 0), (0, 1), (-1, 0), (0, -1))  # the cosine and sine of the four quarters
    return {
        "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
        "triangle": [(0.0, -0.92), (0.9, 0.75), (-0.9, 0.75)],
        "diamond": [(0.0, -1.0), (0.62, 0.0), (0.0, 1.0), (-0.62, 0.0)],
        "cross": [(u * c - v * s, u * s + v * c) for c, s in turns for u, v in quarter],
        "star": [_on_circle(1.05 if corner % 2 == 0 else 0.45, corner / 10) for corner in range(10)],
        "heart": [_on_heart(step / 40) for step in range(40)],
    }


def _on_circle(radius: float, turn: float) -> tuple[float, float]:
    """The point at a share of a clockwise turn from the top."""
    return radius * math.sin(2 * math.pi * turn), -radius * math.cos(2 * math.pi * turn)


def _on_heart(turn: float) -> tuple[float, float]:
    """The point at a share of the heart curve x = 16 sin^3 t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t."""
    t = 2 * math.pi * turn
    y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
    return math.sin(t) ** 3, -(y + 2.5) / 16
