"""Captions of a scene: colors, shapes, sizes, positions and the relation of two shapes."""

import random

from miniclip.data.shapes.scenes import Scene, choose

_SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
_RELATIONS = {  # from the first shape to the second, and the reverse
    "beside": (("to the left of", "left of"), ("to the right of", "right of")),
    "above": (("above", "over"), ("below", "under")),
}
_POSITIONS = {  # by axis and band: position of the first shape and of the second
    ("beside", "low"): ("at the top left", "at the top right"),
    ("beside", "middle"): ("on the left", "on the right"),
    ("beside", "high"): ("at the bottom left", "at the bottom right"),
    ("above", "low"): ("at the top left", "at the bottom left"),
    ("above", "middle"): ("at the top", "at the bottom"),
    ("above", "high"): ("at the top right", "at the bottom right"),
}
_PAIR_POSITIONS = {  # by axis and band: position of both
    ("beside", "low"): "side by side at the top",
    ("beside", "middle"): "side by side in the middle",
    ("beside", "high"): "side by side at the bottom",
    ("above", "low"): "one above the other on the left",
    ("above", "middle"): "one above the other in the middle",
    ("above", "high"): "one above the other on the right",
}
_SIDES = {"beside": ("on the left", "on the right"), "above": ("at the top", "at the bottom")}


def captions_of(scene: Scene, rng: random.Random) -> list[str]:
    """Return five captions: sizes and relation, relation, positions, sizes and shared position, sizes and sides."""
    first, second, axis, band, _ = scene
    plain = [f"{shape.color} {shape.shape}" for shape in (first, second)]
    full = [
        f"{choose(rng, _SIZE_WORDS[shape.size])} {name}" for shape, name in zip((first, second), plain, strict=True)
    ]
    relations = [choose(rng, options) for options in _RELATIONS[axis]]
    subject = int(rng.random() * 2)  # subject of the first caption; the second caption has the other shape
    other = 1 - subject
    positions, together, sides = _POSITIONS[axis, band], _PAIR_POSITIONS[axis, band], _SIDES[axis]
    return [
        f"{_a(full[subject])} {relations[subject]} {_a(full[other])}",
        f"the {plain[other]} is {relations[other]} the {plain[subject]}",
        f"{_a(plain[0])} {positions[0]} and {_a(plain[1])} {positions[1]}",
        f"{_a(full[0])} and {_a(full[1])}, {together}",
        f"{sides[0]} {_a(full[0])}, {sides[1]} {_a(full[1])}",
    ]


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
