"""Image files to RGB images: completely decoded, upright, 8 bits per channel, transparency over white."""

from __future__ import annotations

import functools
import io
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from miniclip.errors import DataError, UnreadableError
from miniclip.utils.files import irregular_kind, read_limited

# Limits on an image's header, checked before memory is allocated for the pixels.
MAX_BYTES = 1 << 30  # memory of the decoder, the decoded image and its RGB copy
MAX_PIXELS = MAX_BYTES // 8  # 4 bytes a pixel for an image, and 4 for its RGB copy
MAX_SIDE = 1 << 17  # the longest side of a JPEG is 65,535
MAX_UNCHECKED_PIXELS = 1 << 24  # a decompression bomb of this size does no harm
MAX_PIXELS_PER_BYTE = 1_000  # limit for larger images: photographs have 1 to 50, a decompression bomb has 10,000
MAX_FILE_BYTES = 1 << 30  # some decoders read the whole file first
STRIP_PIXELS = 1 << 20  # a large image is converted in strips, so that the copies between are small
DARK = 1 / 16  # part of white; a deep image whose brightest value is below it was probably written for another white

# Bytes a pixel that a decoder takes at most, with the decoded image, measured on 12 million pixels. Others take 4.
_DECODER_BYTES = {"WEBP": 20, "AVIF": 16, "JPEG2000": 26, "TIFF": 8, "HEIF": 16}
_NOT_DECODED = {
    "EPS": "EPS files are programs, which are not run",
    "FITS": "FITS files can be compressed without a limit",
}
_ORIENTATION = 0x0112  # the EXIF tag
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
_SIGNED = (2,)  # a value of _SAMPLE_FORMAT
_DEEP = re.compile(r";16[BLN]")  # Pillow's raw modes of 16-bit samples, which it cuts to 8 bits
_ADVICE = "save it with 8 bits per channel, with white as 255"
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(source: str | Path | bytes, name: str | None = None, at_least: int | None = None) -> Image.Image:
    """Open an image file as an RGB image, completely decoded, upright by its EXIF orientation, transparency over white.

    Images of 16 bits per channel are scaled to 8. A file of several frames gives its first. The format is detected
    from the content, not from the file's name.

    Args:
        source: the path of a file, or its bytes.
        name: the file's name in error messages; default: its path.
        at_least: decode a JPEG at 1/2, 1/4 or 1/8 of its size if both sides keep this many pixels, which saves most
            of the decoder's work (docs/cache.md, "Reduced decoding"). None: decode at full size.

    Raises:
        DataError: the file is missing, not a regular file, empty, truncated, not an image, or above the limits.
    """
    with opened_image(source, name) as (image, _):
        if at_least is not None:
            image.draft(None, (at_least, at_least))  # has no effect on formats other than JPEG
        return decode(image)


@contextmanager
def opened_image(source: str | Path | bytes, name: str | None) -> Iterator[tuple[Image.Image, BinaryIO]]:
    """Open an image without decoding it, check its header, and close it at the end.

    Yields:
        The image and its file.

    Raises:
        DataError: anything that goes wrong, in the body of the context too.
    """
    start, pixels = b"", 0
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else _open_regular(source) as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(0)
            start = file.read(12)
            file.seek(0)
            if length > MAX_FILE_BYTES:
                raise DataError(f"it has {length:,} bytes, more than {MAX_FILE_BYTES:,}")
            if start[4:8] == b"ftyp":  # a container of HEIC, AVIF and films
                register_heif()
            # An open file: given a path, Pillow maps some formats, and a file truncated meanwhile kills the process.
            with Image.open(file) as image:
                pixels = image.width * image.height
                _check_header(image, pixels, length)
                yield image, file
    except Exception as error:  # Pillow's decoders raise more types than its documentation names
        if isinstance(error, MemoryError) and 0 < pixels <= MAX_UNCHECKED_PIXELS:
            raise  # the machine is out of memory; the image is not the cause
        name = name or ("an image" if isinstance(source, bytes) else str(source))
        advice = "replace the file, or remove it from the captions"
        raise UnreadableError(name, f"cannot be read as an image: {_reason(error, start)}; {advice}") from error


def decode(image: Image.Image) -> Image.Image:
    """Decode an opened image to RGB, upright; another image than the result is closed to free its memory."""
    load_pixels(image)
    if image.width * image.height > MAX_PIXELS:  # an icon can hold an image of another size
        raise DataError(f"it holds an image of {image.width:,} x {image.height:,} pixels")
    orientation = orientation_of(image)
    rgb = to_rgb(image)
    if rgb is not image:
        image.close()
    return _upright(rgb, orientation)


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


def read_encoded(path: Path) -> bytes:
    """Read an image file without decoding it.

    Raises:
        OSError: the file cannot be read.
        DataError: the file is too large.
    """
    try:
        return read_limited(path, MAX_FILE_BYTES)
    except ValueError as error:
        raise UnreadableError(str(path), f"is {error}") from error


def _open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file for reading; unlike `open_regular`, the OSErrors keep their numbers and do not name it."""
    if kind := irregular_kind(path):
        raise OSError(f"it is {kind}")
    return Path(path).open("rb")


def _check_header(image: Image.Image, pixels: int, length: int) -> None:
    """Check the format and the size of an image in a file of `length` bytes.

    Raises:
        DataError: the image is empty or too large, or its format is not decoded.
    """
    size = f"{image.width:,} x {image.height:,} pixels"
    if not pixels:
        raise DataError(f"it has {size}")
    if image.format in _NOT_DECODED:
        raise DataError(f"{_NOT_DECODED[image.format]}: convert it to PNG")
    if pixels > max(MAX_UNCHECKED_PIXELS, MAX_PIXELS_PER_BYTE * length):
        raise DataError(f"{size} in {length:,} bytes: an empty image, or a decompression bomb")
    most = min(MAX_PIXELS, MAX_BYTES // _decoder_bytes(image))
    if pixels > most or max(image.size) > MAX_SIDE:
        raise DataError(f"{size} are more than {most:,}, or than {MAX_SIDE:,} on a side")


def _decoder_bytes(image: Image.Image) -> int:
    """Return the most bytes a pixel that decoding an opened image takes, with the decoded image."""
    if "progressive" in image.info:  # a JPEG in several scans: its coefficients, 2 bytes each, are kept
        return 4 + 2 * len(image.getbands())
    return _DECODER_BYTES.get(image.format or "", 4)


@functools.cache
def register_heif() -> bool:
    """Let Pillow read HEIC images, if pillow-heif is installed; return whether it is."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def missing_reader(start: bytes) -> str | None:
    """Return what is missing to read an image file whose first 12 bytes are `start`, or None."""
    is_heif = start[4:8] == b"ftyp" and start[8:12] in _HEIF_BRANDS
    if not is_heif or register_heif():
        return None
    return 'it is HEIC, which needs pillow-heif: pip install "miniclip[heif]", or convert it to JPEG'


def unread_format(path: Path) -> str | None:
    """Return why the format of an image file is not read, by its content; None if it may be read."""
    try:
        with _open_regular(path) as file:
            return missing_reader(file.read(12))
    except OSError:
        return None  # opening the image tells


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


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) to 8; 1 if it is missing or damaged."""
    if "exif" not in image.info:  # most images; Pillow's Exif object costs time
        return 1
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF is common, and image viewers ignore it
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    # ImageOps.exif_transpose also copies upright images, and rewrites the EXIF, which fails on unusual tags.
    if orientation not in _TRANSPOSITIONS:
        return image
    upright = image.transpose(_TRANSPOSITIONS[orientation])
    for key in ("exif", "xmp"):  # both hold the old orientation
        upright.info.pop(key, None)
    return upright


def _reason(error: Exception, start: bytes) -> str:
    """Return why an image file that begins with `start` cannot be read, in one line."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, UnidentifiedImageError):
        return missing_reader(start) or (
            f"no image format of Pillow begins with {start!r}" if start else "the file is empty"
        )
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()  # without the path, which starts the message
    if isinstance(error, MemoryError):
        return "it does not fit in this machine's memory"
    return " ".join(str(error).split()) or type(error).__name__
