"""Fast path for JPEG files: decoded straight to a tensor by torchvision, and resized by torch.

A plain JPEG has three channels and is upright. All other images take the exact path: `open_image`, then
`Preprocess.pixels`. Measured in docs/cache.md ("Two ways to read a JPEG").
"""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings
from pathlib import Path
from typing import BinaryIO

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from miniclip.data.decoding import decode, opened_image, orientation_of
from miniclip.data.decoding.rgb import as_tensor, contiguous
from miniclip.data.preprocess import MAX_RESIZED, Preprocess

FAST_CAPABILITIES = {"AVX2", "AVX512"}  # torch resizes uint8 with these, as Pillow does and 6 times as fast
MAX_JPEG_BYTES = 1 << 26  # longer files go to Pillow, which does not read them at once

_RGB = 3  # torchvision.io.ImageReadMode.RGB


def read_pixels(
    source: str | Path | bytes, preprocess: Preprocess, name: str | None = None, at_least: int | None = None
) -> Tensor:
    """Convert an image file to (3, S, S) uint8 by the fastest way.

    The result is that of `preprocess.pixels(open_image(...))`. Pixels of a plain JPEG can differ by a grey level or
    two, since torch rounds the weights of the resizing more than Pillow does. Tests hold the difference within 2.

    Args:
        source: the path of a file, or its bytes.
        preprocess: the model's preprocessing.
        name: the file's name in error messages; default: its path.
        at_least: as in `open_image`.

    Raises:
        DataError: the file cannot be read as an image.
    """
    return to_pixels(decode_image(source, name, at_least), preprocess)


def to_pixels(image: Image.Image | Tensor, preprocess: Preprocess) -> Tensor:
    """Resize and crop a result of `decode_image` to (3, S, S) uint8."""
    if isinstance(image, Image.Image):
        return preprocess.pixels(image)
    height, width = image.shape[1:]
    if (height, width) == (preprocess.size, preprocess.size):
        return contiguous(image)
    resized = preprocess.resized_size(width, height)
    if not _resizes_like_pillow(preprocess.resize, (width, height), resized):
        return preprocess.pixels(Image.fromarray(image.permute(1, 2, 0).numpy()))
    left, top = (preprocess.crop_start(side) for side in resized)
    batch = image.permute(1, 2, 0)[None].permute(0, 3, 1, 2)  # torch's fast code needs channels-last strides
    batch = F.interpolate(batch, resized[::-1], mode=preprocess.interpolation, antialias=True)
    return contiguous(batch[0, :, top : top + preprocess.size, left : left + preprocess.size])


def decode_image(
    source: str | Path | bytes, name: str | None = None, at_least: int | None = None
) -> Image.Image | Tensor:
    """Decode an image file to the pixels of `open_image`, a plain JPEG to a tensor.

    Pillow decodes JPEGs at a reduced size, which torchvision cannot do, and everything that torchvision refuses.
    Which files are refused, and the message, therefore does not depend on the decoder.

    Args:
        source: as in `open_image`.
        name: as in `open_image`.
        at_least: as in `open_image`.

    Returns:
        A plain JPEG as (3, H, W) uint8 with the memory layout of (H, W, 3); any other file as an RGB image.

    Raises:
        DataError: the file cannot be read as an image.
    """
    with opened_image(source, name) as (image, file):
        is_plain = image.format == "JPEG" and image.mode == "RGB" and orientation_of(image) == 1
        size = image.size
        if at_least is not None:
            image.draft(None, (at_least, at_least))
        pixels = _decode_jpeg(file, size) if is_plain and image.size == size else None
        if pixels is not None:
            return pixels
        return as_tensor(decode(image)) if is_plain else decode(image)


@functools.cache
def register_decoder() -> bool:
    """Register torchvision's decoder with torch, from its library: `import torchvision` imports all its models first.

    That takes a second. If the library has another name or needs the package, the package is imported.

    Returns:
        Whether the decoder can be used. Without it, Pillow decodes all images.
    """
    spec = importlib.util.find_spec("torchvision")
    for folder in (spec and spec.submodule_search_locations) or ():
        for library in sorted(Path(folder).glob("image*.so")):
            try:
                torch.ops.load_library(library)  # type: ignore[no-untyped-call]
            except OSError:
                continue
            if hasattr(torch.ops.image, "decode_jpeg"):
                return True
    try:
        import torchvision  # noqa: F401
    except Exception as error:  # one that does not fit torch raises a RuntimeError; no image is the cause
        warnings.warn(f"torchvision cannot be imported ({error}); Pillow decodes JPEG files, slowly", stacklevel=2)
        return False
    return True


def _decode_jpeg(file: BinaryIO, size: tuple[int, int]) -> Tensor | None:
    """Decode a JPEG of three channels and (W, H) pixels to (3, H, W) uint8; None if torchvision refuses it."""
    if not register_decoder():
        return None
    length = file.seek(0, os.SEEK_END)
    if length > MAX_JPEG_BYTES:
        return None
    content = bytearray(length)
    file.seek(0)
    file.readinto(content)  # type: ignore[attr-defined]  # io.BytesIO and regular files have it
    try:
        # torchvision.io.decode_jpeg warns at every call that a later torchvision will have no decoders
        pixels: Tensor = torch.ops.image.decode_jpeg(torch.frombuffer(content, dtype=torch.uint8), _RGB)
    except (RuntimeError, AttributeError):  # a damaged file, or torchvision without libjpeg
        return None
    return pixels if pixels.shape == (3, size[1], size[0]) else None


def _resizes_like_pillow(resize: str, size: tuple[int, int], resized: tuple[int, int]) -> bool:
    """Return whether torch resizes an image of (W, H) pixels as Pillow does, and faster.

    Pillow 13 and later reduces the height of a tall image first, torch always the width; both round in between.
    """
    if torch.backends.cpu.get_cpu_capability() not in FAST_CAPABILITIES:
        return False
    width, height = size
    return height <= (width if resize == "squash" else 2 * width) and resized[0] * resized[1] <= MAX_RESIZED
