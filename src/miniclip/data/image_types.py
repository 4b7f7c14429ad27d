"""Conversion of one image of any type to a PIL image: a path, encoded bytes, an open file, an array or a tensor.

The scale of values is never guessed: arrays and tensors have uint8. Arrays are (H, W, C) and tensors (C, H, W), as is
usual in their libraries. The other order is accepted if it is certain.
Letters: N images, H height, W width, C channels: 1 (grey), 3 (RGB) or 4 (RGBA).
"""

from __future__ import annotations

import errno
import io
import os
import re
import threading
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from miniclip.data.decoding import open_image
from miniclip.errors import UnreadableError
from miniclip.utils.items import describe, is_missing

UNNAMED = "an image"  # in the error of an image without a file
EXPECTED = (
    "a path, a PIL image, an array (H, W), (H, W, 3) or (H, W, 4) of uint8, a tensor (3, H, W) of uint8, the bytes of "
    "an image file or an open file"
)
CHANNELS = (1, 3, 4)
MAX_SHOWN = 200  # characters of a path in an error message
URL = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)
_file_lock = threading.Lock()  # a list may hold the same open file twice


class ReadableFile(Protocol):
    """Open file, or another object that returns the bytes of an image file."""

    def read(self) -> bytes:
        """Return the bytes."""


Array: TypeAlias = npt.NDArray[Any]
ImageInput: TypeAlias = (
    str | os.PathLike[str] | Image.Image | bytes | bytearray | memoryview | ReadableFile | Array | Tensor
)


def as_image(item: Any) -> Image.Image:
    """Convert an image of any type that `EXPECTED` lists to a PIL image.

    Raises:
        FileNotFoundError: the path does not exist.
        DataError: the file cannot be read as an image.
        TypeError: the type, the dtype or the shape is another one.
    """
    if isinstance(item, Image.Image):
        if 0 in item.size:
            raise TypeError(f"found an image of {item.width} x {item.height} pixels, which has no pixels")
        return item
    if isinstance(item, str | os.PathLike):
        return open_image(existing(item))
    if is_encoded(item):
        return open_image(encoded(item), UNNAMED)
    if isinstance(item, Tensor) or is_array(item):
        return Image.fromarray(single_image(item))
    raise TypeError(f"found {describe(item)}; expected {EXPECTED}{_advice(item)}")


def _advice(item: Any) -> str:
    if is_missing(item):
        return ": the cell is empty; drop it, as in column.dropna()"
    return ": pass each image by itself" if isinstance(item, list | tuple | dict) else ""


def existing(path: str | os.PathLike[str]) -> Path:
    """Return the path of a file that exists.

    Raises:
        FileNotFoundError: the file does not exist; the message has a hint for a URL, a pattern and other texts.
        UnreadableError: the path is a folder.
    """
    text = os.fspath(path)
    file = Path(text)
    try:
        exists = bool(text) and file.exists()
    except OSError as error:
        exists = error.errno != errno.ENAMETOOLONG  # other errors are reported when the file is opened
    if not exists:
        shown = text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}… ({len(text):,} characters)"
        raise FileNotFoundError(f"{shown or repr(text)}: {_reason(text)}")
    if file.is_dir():
        raise UnreadableError(text, "is a folder; pass its images, as in sorted(Path('photos').glob('*.jpg'))")
    return file


def _reason(text: str) -> str:
    """Return the reason why a file does not exist, with a hint."""
    if text.startswith("data:"):
        return "is a data URL; pass its bytes, as in base64.b64decode(text.partition(',')[2])"
    if URL.match(text):
        return "is a URL; download the image, and pass its path or its bytes"
    hint = ""
    if any(character in text for character in "*?["):
        hint = "; patterns are not expanded: pass sorted(glob.glob(pattern))"
    elif text.startswith("~"):
        hint = "; ~ is not expanded: pass Path(path).expanduser()"
    elif len(text) > MAX_SHOWN:
        hint = "; if the text is an image in base64, pass its bytes: base64.b64decode(text)"
    return f"no such image file{hint}"


def is_encoded(item: Any) -> bool:
    """Return whether an object is the bytes of an image file, or an open file."""
    return isinstance(item, bytes | bytearray | memoryview) or callable(getattr(item, "read", None))


def encoded(item: Any) -> bytes:
    """Return the bytes of an image file; an open file is read from its start.

    Raises:
        UnreadableError: the file is closed.
        TypeError: the file was opened as text.
    """
    if not hasattr(item, "read"):
        return bytes(item)
    if getattr(item, "closed", False):
        raise UnreadableError(UNNAMED, "the file is closed; keep it open until its image is read, or pass its bytes")
    if isinstance(item, io.TextIOBase):
        raise TypeError(f"found {describe(item)} that reads text; open the file with mode 'rb'")
    with _file_lock:
        if hasattr(item, "seekable") and item.seekable():
            item.seek(0)
        content = item.read()
    if not isinstance(content, bytes | bytearray):
        raise TypeError(f"found {describe(item)} whose read() returns {describe(content)}; expected bytes")
    return bytes(content)


def is_array(item: Any) -> bool:
    """Return whether an object is an array, numpy's or that of another library."""
    if isinstance(item, np.ndarray):
        return True
    return hasattr(item, "__array__") and hasattr(item, "dtype") and len(getattr(item, "shape", ())) > 1


def is_uint8(pixels: Tensor) -> bool:
    """Return whether pixels are uint8, or floats.

    Raises:
        TypeError: they are not a tensor, or one of integers of another type.
    """
    if not isinstance(pixels, Tensor):
        raise TypeError(f"found {describe(pixels)}; expected a tensor (..., 3, S, S) of uint8, or of floats in 0..1")
    if not pixels.is_floating_point():
        require_uint8(pixels)
    return not pixels.is_floating_point()


def require_uint8(pixels: Any) -> None:
    """Raise TypeError, with the range of the values, if pixels are not uint8, or are masked."""
    if isinstance(pixels, np.ma.MaskedArray):
        raise TypeError("found a masked array; pass one without a mask, as in x.filled(255)")
    if isinstance(pixels, Tensor) and pixels.layout != torch.strided:
        raise TypeError(f"found {describe(pixels)} that is sparse; pass x.to_dense()")
    if str(pixels.dtype).removeprefix("torch.") == "uint8":
        return
    raise TypeError(
        f"found {describe(pixels)}{_range(pixels)}; expected {EXPECTED}. The scale of other numbers is not certain: "
        "convert them to uint8, 0 to 255, which for values from 0 to 1 is 255 * x, rounded; encode_image also takes "
        "normalised pixels, a float tensor (N, 3, S, S)"
    )


def _range(pixels: Any) -> str:
    """Return the range of numbers as a part of a message; "" for other values."""
    dtype = str(pixels.dtype).removeprefix("torch.")
    if not dtype.startswith(("float", "bfloat", "int", "uint")) or 0 in pixels.shape:
        return ""
    if isinstance(pixels, Tensor):
        if pixels.is_meta:
            return ""
        pixels = pixels.double()
    return f" with values from {float(pixels.min()):g} to {float(pixels.max()):g}"


def image_batch(pixels: Any) -> Array:
    """Return a batch of uint8 images, an array or a tensor of four dimensions, as an array (N, H, W, C).

    Raises:
        TypeError: the dtype or the shape is another one.
    """
    require_uint8(pixels)
    array = _to_numpy(pixels)
    _, second, _, last = array.shape
    if second in CHANNELS and (isinstance(pixels, Tensor) or last not in CHANNELS):
        return array.transpose(0, 2, 3, 1)
    if last in CHANNELS:
        return array
    raise TypeError(f"found {describe(pixels)}; expected a batch (N, 3, H, W) or (N, H, W, 3)")


def single_image(pixels: Any) -> Array:
    """Return one uint8 image, an array or a tensor, as an array (H, W), (H, W, 3) or (H, W, 4).

    Raises:
        TypeError: the dtype or the shape is another one, or the order of the dimensions is not certain.
    """
    require_uint8(pixels)
    if len(pixels.shape) == 4 and len(pixels) == 1:
        array = image_batch(pixels)[0]
    elif len(pixels.shape) == 3:
        array = _last_channels(pixels)
    else:
        array = _to_numpy(pixels)
    if array.ndim == 4:
        raise TypeError(f"found {describe(pixels)}, a batch inside of a list; pass it by itself, or join batches first")
    if array.ndim not in (2, 3):
        raise TypeError(f"found {describe(pixels)}; expected {EXPECTED}")
    if not array.size:
        raise TypeError(f"found {describe(pixels)}, which has no pixels")
    grey: Array = array[:, :, 0] if array.shape[2:] == (1,) else array
    return grey


def _last_channels(pixels: Any) -> Array:
    """Return pixels of three dimensions, one image, as an array (H, W, C)."""
    array, is_tensor = _to_numpy(pixels), isinstance(pixels, Tensor)
    first, _, last = array.shape
    if last in CHANNELS and not (is_tensor and first in (1, 3)):
        return array
    if first == 1 or (is_tensor and first == 3):
        return array.transpose(1, 2, 0)
    one = "x[None] for one image with its channels first, " if first in CHANNELS else ""
    raise TypeError(
        f"found {describe(pixels)}, whose dimensions are not certain; expected {EXPECTED}: pass {one}x[..., None] for "
        "a batch of grey images"
    )


def _to_numpy(pixels: Any) -> Array:
    if getattr(pixels, "is_meta", False):
        raise TypeError(f"found {describe(pixels)} on the meta device, without data")
    return pixels.detach().cpu().numpy() if isinstance(pixels, Tensor) else np.asarray(pixels)
