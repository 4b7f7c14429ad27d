"""Shapes as a labelled dataset: scenes whose two shapes share their color, or their shape."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from miniclip.data.shapes.dataset import Shapes
from miniclip.data.shapes.scenes import COLORS, SHAPES
from miniclip.data.splits import Split

Attribute = Literal["color", "shape"]


class ShapeClasses:
    """Images of `Shapes` with one class each: the color, or the shape, that both shapes of the image share.

    Args:
        attribute: "color" or "shape".
        split: "train", "val" or "test", as in `Shapes`. Images of val and test show combinations that train does not.
        image_size: side of an image in pixels.

    Attributes:
        class_names: 8 colors or 8 shapes.
        templates: prompts in the language of the captions of `Shapes`.

    Raises:
        ValueError: the attribute or the split does not exist.
    """

    def __init__(self, attribute: Attribute, split: Split = "test", *, image_size: int = 64) -> None:
        if attribute not in ("color", "shape"):
            raise ValueError(f"attribute {attribute!r}: expected 'color' or 'shape'")
        self.attribute = attribute
        self.class_names = list(COLORS if attribute == "color" else SHAPES)
        self.shapes = Shapes(
            split, 6160 if split == "train" else 952, image_size=image_size
        )  # every kind of scene once
        self._rows = [
            (index, self.class_names.index(values[0]))
            for index in range(len(self.shapes))
            if len(set(values := self._values(index))) == 1
        ]
        self.templates = _templates(attribute)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Draw an image; return it with the index of its class."""
        row, label = self._rows[index]
        return self.shapes[row][0], label

    def __repr__(self) -> str:
        return f"ShapeClasses({self.attribute!r}, {self.shapes!r})"

    def _values(self, index: int) -> list[str]:
        scene = self.shapes.scene(index)
        return [getattr(shape, self.attribute) for shape in (scene.first, scene.second)]


def _templates(attribute: Attribute) -> list[Callable[[str], str]]:
    """One prompt for each value of the other attribute, which the images do not share."""
    if attribute == "color":
        return [partial(_prompt, shape=shape) for shape in SHAPES]
    return [partial(_prompt, color) for color in COLORS]


def _prompt(color: str, shape: str) -> str:
    return f"a large {color} {shape} and a large {color} {shape}"
