"""Images that a user passes, in any collection, as single images in order or as one tensor of normalised pixels.

Letters: N images, H height, W width, C channels, S image side.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, KeysView, Sequence, ValuesView
from io import BytesIO
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from miniclip.data.image_types import EXPECTED, ImageInput, encoded, image_batch, is_array, is_encoded
from miniclip.data.preprocess import Preprocess
from miniclip.utils.items import describe, listed, refuse_unordered

Images: TypeAlias = ImageInput | Iterable[ImageInput]

SEVERAL = f"{EXPECTED}, or several in a list, an array, a column of a table or a generator"
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
MAX_DISTANCE = 4  # limit for normalised pixels outside the range of an image's values, in widths of this range


def image_items(images: Any) -> Tensor | Sequence[Any]:
    """Return normalised pixels (N, 3, S, S), or images that `as_image` converts one by one.

    A sequence other than a list is not read, so that a dataset's images can be opened when they are needed. A
    generator is read completely.

    Raises:
        TypeError: the images are of another type, or of a dtype or shape that is not certain.
        ValueError: tensors of normalised pixels differ in shape.
    """
    if isinstance(images, Tensor):
        return _tensor_items(images)
    if isinstance(images, str | os.PathLike | Image.Image) or is_encoded(images):
        return [images]
    refuse_unordered(images, "images", SEVERAL)
    if isinstance(images, np.ndarray) and images.dtype.kind == "S":
        raise TypeError("images: found an array of bytes, which loses zeros at their ends; pass a list of bytes")
    if isinstance(images, np.ndarray) and images.dtype.kind in "OU":
        return [images.item()] if images.ndim == 0 else listed(images, "images", SEVERAL)
    if is_array(images) and len(images.shape) > 1:
        return _batch_items(images) if len(images.shape) == 4 else [images]
    if isinstance(images, Sequence) and not isinstance(images, list | tuple | deque):
        return images
    if isinstance(images, Iterable) and not _holds_its_items(images):
        return _joined([_kept(item) for item in images])
    return _joined(listed(images, "images", SEVERAL))


def check_normalised(pixels: Tensor, preprocess: Preprocess) -> None:
    """Check that float pixels can be normalised ones; pixels of 0 to 255 lie far outside of their range.

    Raises:
        ValueError: they cannot; the message has their range.
    """
    if not pixels.numel() or pixels.is_meta:
        return
    darkest, brightest = (preprocess.normalise(torch.full((3, 1, 1), value, device="cpu")) for value in (0.0, 1.0))
    low, high = float(darkest.min()), float(brightest.max())
    margin = MAX_DISTANCE * (high - low)
    smallest, largest = torch.stack(pixels.aminmax()).tolist()  # one wait for a GPU, not two
    if smallest < low - margin or largest > high + margin:
        expected = f"normalised pixels, {low:.2g} to {high:.2g}, as model.preprocess returns them"
        found = f"{describe(pixels)}, {smallest:g} to {largest:g}"
        raise ValueError(f"images: found {found}; expected {expected}: pass pixels of 0 to 255 as uint8")


def is_normalised(item: Any) -> bool:
    """Return whether an item is a tensor of floats, which are normalised pixels."""
    return isinstance(item, Tensor) and item.dtype in FLOATS and item.layout == torch.strided


def _tensor_items(images: Tensor) -> Tensor | Sequence[Any]:
    """Return a float tensor as normalised pixels, a uint8 tensor as images."""
    if is_normalised(images) and images.dim() == 4:
        return images
    if is_normalised(images) and images.dim() == 3 and len(images) == 3:
        return images[None]
    return _batch_items(images) if images.dim() == 4 else [images]


def _batch_items(images: Any) -> list[Any]:
    try:
        return list(image_batch(images))
    except TypeError as error:
        raise TypeError(f"images: {error}") from None


def _holds_its_items(images: Iterable[Any]) -> bool:
    """Return whether a collection holds all of its items; a generator or a reader of films makes them one by one."""
    is_column = hasattr(images, "shape") or hasattr(images, "to_pylist")
    return is_column or isinstance(images, list | tuple | deque | KeysView | ValuesView)


def _kept(item: Any) -> Any:
    """Return an item that stays valid when a generator continues, which may reuse its arrays and close its files."""
    if isinstance(item, Tensor):
        return item.clone()
    if isinstance(item, np.ndarray):
        return item.copy()
    if isinstance(item, Image.Image):
        return _kept_image(item)
    return encoded(item) if is_encoded(item) else item


def _kept_image(image: Image.Image) -> Image.Image:
    """Return a copy of an image; of one that is not decoded yet, a copy of its file, which takes less memory."""
    file = getattr(image, "fp", None)
    try:
        if file is None or not getattr(image, "tile", None) or getattr(image, "is_animated", False):
            return image.copy()  # a frame of an animation too: its iterator yields the same object again and again
        position = file.tell()
        file.seek(0)
        content = file.read()
        file.seek(position)
        return Image.open(BytesIO(content))
    except Exception:  # a damaged file; the caller's error names the image
        return image


def _joined(items: Sequence[Any]) -> Tensor | Sequence[Any]:
    """Return float tensors, each one image's normalised pixels, as one tensor; other items as they are.

    Raises:
        TypeError: only some items are float tensors, or one is a batch.
        ValueError: the tensors differ in shape.
    """
    normalised = [is_normalised(item) for item in items]
    if not any(normalised):
        return items
    if not all(normalised):
        index = normalised.index(not normalised[0])
        raise TypeError(
            f"images: image 0 is {describe(items[0])}, image {index} is {describe(items[index])}; expected normalised "
            "pixels for all of them, or for none"
        )
    rows = [item[0] if item.dim() == 4 and len(item) == 1 else item for item in items]
    for index, row in enumerate(rows):
        if row.dim() != 3:
            raise TypeError(
                f"images: image {index} is {describe(row)}; expected normalised pixels (3, S, S) of one image: join "
                "batches with torch.cat"
            )
        if row.shape != rows[0].shape:
            raise ValueError(
                f"images: image 0 is {describe(rows[0])}, image {index} is {describe(row)}; expected the same shape"
            )
    return torch.stack(rows)
