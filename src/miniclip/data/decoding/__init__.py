"""Image files to RGB images: completely decoded, upright, 8 bits per channel, transparency over white."""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from miniclip.data.decoding.rgb import load_pixels, to_rgb
from miniclip.errors import DataError, UnreadableError
from miniclip.utils.files import irregular_kind, read_limited

# Limits on an image's header, checked before memory is allocated for the pixels.
MAX_BYTES = 1 << 30  # memory of the decoder, the decoded image and its RGB copy
MAX_PIXELS = MAX_BYTES // 8  # 4 bytes a pixel for an image, and 4 for its RGB copy
MAX_SIDE = 1 << 17  # the longest side of a JPEG is 65,535
MAX_UNCHECKED_PIXELS = 1 << 24  # a decompression bomb of this size does no harm
MAX_PIXELS_PER_BYTE = 1_000  # limit for larger images: photographs have 1 to 50, a decompression bomb has 10,000
MAX_FILE_BYTES = 1 << 30  # some decoders read the whole file first

# Bytes a pixel that a decoder takes at most, with the decoded image, measured on 12 million pixels. Others take 4.
_DECODER_BYTES = {"WEBP": 20, "AVIF": 16, "JPEG2000": 26, "TIFF": 8, "HEIF": 16}
_NOT_DECODED = {
    "EPS": "EPS files are programs, which are not run",
    "FITS": "FITS files can be compressed without a limit",
}
RAW_SUFFIXES = frozenset((".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw", ".raw"))
_DNG_VERSION = 0xC612  # a tag of every DNG file
_ORIENTATION = 0x0112  # the EXIF tag
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
    name = name or ("an image" if isinstance(source, bytes) else str(source))
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
                if image.format == "TIFF" and (is_raw(name) or _DNG_VERSION in getattr(image, "tag_v2", ())):
                    raise DataError(
                        "it is a RAW file of a camera, of which only a thumbnail is read: convert it to JPEG"
                    )
                yield image, file
    except Exception as error:  # Pillow's decoders raise more types than its documentation names
        if isinstance(error, MemoryError) and 0 < pixels <= MAX_UNCHECKED_PIXELS:
            raise  # the machine is out of memory; the image is not the cause
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


def is_raw(name: str) -> bool:
    """Return whether a file's name is that of a RAW file. Its content does not tell: many are TIFF files inside."""
    return name[name.rfind(".") :].lower() in RAW_SUFFIXES


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
