"""Drawing of a scene, antialiased."""

import math
from functools import cache

from PIL import Image, ImageDraw

from miniclip.data.shapes.scenes import RGB, PlacedShape, Scene

Points = list[tuple[float, float]]


def draw_scene(scene: Scene, image_size: int) -> Image.Image:
    """Draw a scene as an RGB image of `image_size` pixels a side."""
    scale = 4 if image_size <= 96 else 2  # drawn larger, then averaged
    side = image_size * scale
    image = Image.new("RGB", (side, side), scene.background)
    pencil = ImageDraw.Draw(image)
    for shape in (scene.first, scene.second):
        _draw_shape(pencil, shape, side, scene.background)
    return image.reduce(scale)


def draw_mask(shape: PlacedShape, image_size: int) -> Image.Image:
    """Draw where a shape is: a grey image of `image_size` pixels a side, 255 inside."""
    scale = 4
    mask = Image.new("RGB", (image_size * scale, image_size * scale))
    _draw_shape(ImageDraw.Draw(mask), shape._replace(rgb=(255, 255, 255)), image_size * scale, (0, 0, 0))
    return mask.convert("L").reduce(scale)


def _draw_shape(pencil: ImageDraw.ImageDraw, placed: PlacedShape, side: int, background: RGB) -> None:
    x, y, radius = placed.x * side, placed.y * side, placed.radius * side
    if placed.shape in {"circle", "ring"}:
        _draw_disc(pencil, x, y, 0.92 * radius, placed.rgb)
        if placed.shape == "ring":
            _draw_disc(pencil, x, y, 0.5 * radius, background)
        return
    sin, cos = radius * math.sin(placed.angle), radius * math.cos(placed.angle)
    outline = _outlines()[placed.shape]
    pencil.polygon([(x + u * cos - v * sin, y + u * sin + v * cos) for u, v in outline], fill=placed.rgb)


def _draw_disc(pencil: ImageDraw.ImageDraw, x: float, y: float, radius: float, rgb: RGB) -> None:
    pencil.ellipse((x - radius, y - radius, x + radius, y + radius), fill=rgb)


@cache
def _outlines() -> dict[str, Points]:
    """Return the corners of each polygon, within the unit circle about its center."""
    arm = 0.3  # half the width of the cross's bars
    quarter = [(-arm, -0.95), (arm, -0.95), (arm, -arm)]
    turns = ((1, 0), (0, 1), (-1, 0), (0, -1))  # cosine and sine of the four quarters
    return {
        "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
        "triangle": [(0.0, -0.92), (0.9, 0.75), (-0.9, 0.75)],
        "diamond": [(0.0, -1.0), (0.62, 0.0), (0.0, 1.0), (-0.62, 0.0)],
        "cross": [(u * c - v * s, u * s + v * c) for c, s in turns for u, v in quarter],
        "star": [_on_circle(1.05 if corner % 2 == 0 else 0.45, corner / 10) for corner in range(10)],
        "heart": [_on_heart(step / 40) for step in range(40)],
    }


def _on_circle(radius: float, turn: float) -> tuple[float, float]:
    """Return the point at a fraction of a clockwise turn from the top."""
    return radius * math.sin(2 * math.pi * turn), -radius * math.cos(2 * math.pi * turn)


def _on_heart(turn: float) -> tuple[float, float]:
    """Return a point of the heart curve x = 16 sin^3 t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t."""
    t = 2 * math.pi * turn
    y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
    return math.sin(t) ** 3, -(y + 2.5) / 16
