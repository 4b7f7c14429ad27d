"""Limits on the requests of the page, and the check of an uploaded image against them."""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from miniclip.data.decoding import register_heif
from miniclip.data.preprocess import Preprocess
from miniclip.errors import DataError, UnreadableError
from miniclip.inference.images import read_pixels

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")  # those of cameras, phones and browsers


@dataclass(frozen=True)
class Limits:
    """Limits of the page.

    Attributes:
        upload_bytes: size of an uploaded file.
        upload_pixels: width times height of an uploaded image; the library's own limit is 134 million.
        body_bytes: size of any other request.
        labels: number of labels.
        hits: number of hits of a search.
        waiting: requests that wait for the model; further ones are refused with status 503.
        decoding: thumbnails that are made, or wait for it; further ones are refused with status 503.
        uploading: uploaded images that are decoded, or wait for it; further ones are refused with status 503.
        uploads: uploaded images whose embeddings are kept.
        cache_bytes: thumbnails in memory.
    """

    upload_bytes: int = 20 << 20
    upload_pixels: int = 50_000_000
    body_bytes: int = 64 << 10
    labels: int = 100
    hits: int = 500
    waiting: int = 64
    decoding: int = 256
    uploading: int = 24
    uploads: int = 256
    cache_bytes: int = 64 << 20


def read_upload(content: bytes, preprocess: Preprocess, limits: Limits) -> Tensor:
    """Decode an uploaded image; its header is checked before memory is allocated for its pixels.

    Args:
        content: bytes of an image file.
        preprocess: preprocessing of the model.
        limits: limits of the page.

    Returns:
        (3, S, S) uint8, as the model takes it. They are those of `model.encode_image(content)`.

    Raises:
        DataError: the bytes are not an image of `FORMATS`, or above a limit.
    """
    if not content:
        raise DataError("the upload is empty; choose an image file")
    if len(content) > limits.upload_bytes:
        raise DataError(too_many_bytes(limits))
    register_heif()
    try:
        with Image.open(io.BytesIO(content), formats=_formats()) as image:
            width, height = image.size
    except Image.DecompressionBombError:  # Pillow's own limit, if it is lower
        raise DataError(f"the upload has more than {limits.upload_pixels:,} pixels: make the image smaller") from None
    except Exception:  # Pillow's readers raise more types than its documentation names
        raise DataError(f"the upload is not an image that can be read; expected {', '.join(_formats())}") from None
    if width * height > limits.upload_pixels:
        raise DataError(
            f"the upload has {width:,} x {height:,} pixels, more than {limits.upload_pixels:,}: make the image smaller"
        )
    try:
        return read_pixels(content, preprocess)
    except UnreadableError as error:
        reason = error.reason.removeprefix("cannot be read as an image: ").partition("; replace the file")[0]
        raise DataError(f"the upload cannot be read as an image: {reason}") from None


def too_many_bytes(limits: Limits) -> str:
    """Return the message for an upload of too many bytes."""
    return f"the upload is larger than {limits.upload_bytes / (1 << 20):.3g} MiB; choose a smaller image"


def _formats() -> tuple[str, ...]:
    """Return the formats of `FORMATS` that this Pillow can read."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)
