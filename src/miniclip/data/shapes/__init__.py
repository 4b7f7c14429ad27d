"""Embedded default dataset: two colored shapes on a plain background, with compositional captions."""

from miniclip.data.shapes.dataset import Shapes
from miniclip.data.shapes.scenes import COLORS, HELD_OUT, SHAPES, PlacedShape, Scene

__all__ = ["COLORS", "HELD_OUT", "SHAPES", "PlacedShape", "Scene", "Shapes"]
