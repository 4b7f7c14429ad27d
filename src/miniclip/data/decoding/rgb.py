"""Decoded images of any mode to RGB: 8 bits per channel, transparency over white, and the scale of grey levels."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from miniclip.errors import DataError

STRIP_PIXELS = 1 << 20  # a large image is converted in strips, so that the copies between are small
DARK = 1 / 16  # part of white; a deep image whose brightest value is below it was probably written for another white
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
_SIGNED = (2,)  # a value of _SAMPLE_FORMAT
_DEEP = re.compile(r";16[BLN]")  # Pillow's raw modes of 16-bit samples, which it cuts to 8 bits
_ADVICE = "save it with 8 bits per channel, with white as 255"


def as_tensor(image: Image.Image) -> Tensor:
    """Convert an RGB image to (3, H, W) uint8 with the memory layout of (H, W, 3)."""
    array = np.empty((image.height, image.width, 3), np.uint8)
    for top, strip in _strips(image):
        array[top : top + strip.height] = np.asarray(strip)
    return torch.from_numpy(array).permute(2, 0, 1)


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yield the top rows and the strips of an image; a small image is its only strip."""
    rows = max(1, STRIP_PIXELS // image.width)
    if image.height <= rows:
        yield 0, image
        return
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def contiguous(pixels: Tensor) -> Tensor:
    """Copy pixels to contiguous memory on the calling thread; torch would start threads under each one of a pool."""
    return torch.from_numpy(np.ascontiguousarray(pixels.numpy()))


def load_pixels(image: Image.Image) -> None:
    """Decode an opened image in its own mode.

    Raises:
        DataError: Pillow does not keep the scale of its samples.
    """
    is_deep = any(_DEEP.search(repr(tile[3])) for tile in getattr(image, "tile", ()))
    image.load()
    if image.mode == "L" and _tag(image, _SAMPLE_FORMAT) == _SIGNED:
        raise DataError(f"its samples are signed integers of 8 bits, whose scale is not certain: {_ADVICE}")
    if is_deep and not is_wide(image):
        extrema: Any = image.getextrema()
        bands = [extrema] if len(image.getbands()) == 1 else extrema
        highest = max(high for name, (_, high) in zip(image.getbands(), bands, strict=True) if name not in "Aa")
        if highest < DARK * 256:
            raise DataError(f"all its 16-bit samples are below {DARK * 65536:,.0f}, where white is 65,535: {_ADVICE}")


def is_wide(image: Image.Image) -> bool:
    """Return whether an image is grey and has more than 8 bits a pixel: Pillow's modes I, I;16, I;16B, … and F."""
    return image.mode.startswith("I") or image.mode == "F"


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB; an RGB image is returned without a copy.

    Raises:
        DataError: the scale of its grey levels is not certain.
    """
    load_pixels(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    convert = _conversion(image)
    if image.width * image.height <= STRIP_PIXELS:
        return convert(image)
    rgb = Image.new("RGB", image.size)
    for top, strip in _strips(image):
        rgb.paste(convert(strip), (0, top))
    return rgb


def _conversion(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """Return the conversion of an image, or of any strip of it, to RGB."""
    if is_wide(image):
        factor, offset = _scale(image)
        return lambda strip: _to_8_bits(strip, factor, offset).convert("RGB")
    if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
        return _over_white
    return lambda strip: strip.convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    layer = image.convert("LA") if image.mode == "La" else image
    layer = layer.convert("RGBA")
    white = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(white, layer).convert("RGB")


def _to_8_bits(image: Image.Image, factor: float, offset: float) -> Image.Image:
    """Scale a grey image of more than 8 bits; Pillow would clip it."""
    # through I: Pillow converts the big-endian modes to F by way of L, which clips them
    values = image.convert("I").convert("F") if image.mode.startswith("I;") else image.convert("F")
    values.info.pop("transparency", None)  # a 16-bit grey level, not valid in 8 bits
    return values.point(lambda value: value * factor + (offset + 0.5)).convert("L")


def _scale(image: Image.Image) -> tuple[float, float]:
    """Return the factor and the offset that map the grey levels of an image of more than 8 bits to 0..255.

    White is 65,535 for 16 bits, and what the format defines. For 32-bit integers, which have no white of their own, it
    is 255; for floats it is 1, or 255 if a value is above 1.

    Raises:
        DataError: a value is outside of black to white, or the brightest is almost black: another white was meant.
    """
    bounds = np.array([(levels.min(), levels.max()) for levels in (np.asarray(strip) for _, strip in _strips(image))])
    low, high = float(bounds[:, 0].min()), float(bounds[:, 1].max())
    white = _white(image, high)
    found = f"its grey levels are from {low:g} to {high:g} ({bounds.dtype.name})"
    if not 0 <= low <= high <= white:  # false for NaN too
        raise DataError(f"{found}, where {white:,.0f} is white, so their scale is not certain: {_ADVICE}")
    if 0 < high < DARK * white:
        raise DataError(f"{found}, which is almost black where {white:,.0f} is white: {_ADVICE}")
    if image.format == "TIFF" and _tag(image, _PHOTOMETRIC) == 0:  # 0 is white; Pillow inverts only 8 bits and less
        return -255.0 / white, 255.0
    return 255.0 / white, 0.0


def _white(image: Image.Image, high: float) -> float:
    """Return the grey level of white, for an image whose brightest value is `high`."""
    if image.mode == "F":
        return 1.0 if high <= 1.0 else 255.0
    if image.mode == "I":
        return 65535.0 if image.format == "PPM" else 255.0  # Pillow scales PPM to 16 bits
    return 4095.0 if _tag(image, _BITS_PER_SAMPLE) == (12,) else 65535.0


def _tag(image: Image.Image, tag: int) -> Any:
    """Return the value of a TIFF tag, None if it is missing or the image is not a TIFF."""
    return getattr(image, "tag_v2", {}).get(tag)
