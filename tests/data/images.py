"""Images and a small configuration for the tests of preprocessing."""

import io

import numpy as np
from PIL import Image, ImageDraw

from miniclip.config import CLIPConfig, ImageConfig, TextConfig

S = 24
CONFIG = CLIPConfig(ImageConfig(S, 8, 6, 1, 1), TextConfig(5, 10, 6, 1, 1), 4)
SIZES = [(1, 1), (500, 3), (3, 500), (24, 24), (24, 25), (25, 24), (23, 23), (61, 47), (48, 48), (2, 1)]


def make_image(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """A gradient with noise."""
    rng = np.random.default_rng(width * 1000 + height)
    smooth = np.add.outer(np.arange(height) * 3, np.arange(width) * 2)[:, :, None]
    noise = rng.integers(0, 60, (height, width, 4))
    values = ((smooth + np.array([0, 60, 120, 180]) + noise) % 256).astype(np.uint8)
    if mode == "L":
        return Image.fromarray(values[:, :, 0])
    if mode == "RGBA":
        return Image.fromarray(values, "RGBA")
    rgb = Image.fromarray(np.ascontiguousarray(values[:, :, :3]))
    return rgb.quantize(16) if mode == "P" else rgb


def encoded(image: Image.Image, format: str = "JPEG", **options: object) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def drawing(size: tuple[int, int]) -> Image.Image:
    """Lines, discs and letters on stripes, which are hard for reduced decoding."""
    rng = np.random.default_rng(0)
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    for x in range(0, size[0], 7):
        draw.line([x, 0, size[0] - x, size[1]], fill=tuple(rng.integers(0, 256, 3).tolist()), width=2)
    for _ in range(30):
        x, y, r = rng.integers(0, min(size), 3).tolist()
        draw.ellipse([x, y, x + r / 2, y + r / 2], fill=tuple(rng.integers(0, 256, 3).tolist()))
    draw.text((10, 10), "a word", fill="black", font_size=size[1] / 6)
    return image
