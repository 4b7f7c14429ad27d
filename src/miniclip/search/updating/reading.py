"""One image of a source: its bytes are read once, for the digest and for the pixels. S is the model's image side."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from miniclip.data.decoding import MAX_FILE_BYTES, is_raw, missing_reader, open_image
from miniclip.data.decoding.jpeg import MAX_JPEG_BYTES, decode_image, to_pixels
from miniclip.data.decoding.rgb import to_rgb
from miniclip.data.formats.raw import open_raw
from miniclip.data.preprocess import Preprocess
from miniclip.data.skipping import reason_of
from miniclip.errors import DataError, UnreadableError
from miniclip.search.store import FileState
from miniclip.utils.files import open_regular
from miniclip.utils.formatting import format_bytes
from miniclip.utils.system_errors import system_message

RECENT_NS = 2_000_000_000  # a file system's clock can be this coarse
ADVICE = "; replace the file, or remove it from the captions"  # the end of messages from readers of datasets


class Content(NamedTuple):
    """Content of an image.

    Attributes:
        source: bytes of the file, its path if it is large, or an image that is not a file.
        state: of the file.
        sha256: digest of the content.
    """

    source: bytes | Path | Image.Image
    state: FileState
    sha256: bytes


class ReadImage(NamedTuple):
    """Result of reading an image.

    Attributes:
        name: of the image.
        state: of its file.
        sha256: digest of its content; empty if it cannot be read.
        size: width and height of the upright image; None if it was not decoded.
        pixels: (3, S, S) uint8; None if it was not decoded.
        reason: why it cannot be read; None if it can.
        is_missing: whether the file does not exist any more.
    """

    name: str
    state: FileState
    sha256: bytes = b""
    size: tuple[int, int] | None = None
    pixels: Tensor | None = None
    reason: str | None = None
    is_missing: bool = False


def read_image(
    name: str,
    open_source: Callable[[], Path | bytes | Image.Image],
    preprocess: Preprocess,
    claim: Callable[[bytes], bool],
) -> ReadImage:
    """Read an image.

    Args:
        name: its name.
        open_source: function that returns its file, its bytes or the decoded image.
        preprocess: the model's preprocessing.
        claim: function of a digest that returns whether the caller needs the pixels.
    """
    source: Path | bytes | Image.Image = b""
    state, digest = FileState(0, 0, False), b""
    try:
        source = open_source()
        content = read_content(source)
        state, digest = content.state, content.sha256
        if not claim(digest):
            return ReadImage(name, state, digest)
        image = _decode(name, content)
        width, height = image.size if isinstance(image, Image.Image) else (image.shape[2], image.shape[1])
        return ReadImage(name, state, digest, (width, height), to_pixels(image, preprocess))
    except (DataError, OSError, ImportError) as error:
        if not isinstance(error, DataError):
            state = state._replace(certain=False)  # not the content is the cause: try again at the next update
        reason = system_message(error) if isinstance(error, OSError) else reason_of(error)
        is_missing = isinstance(source, Path) and not os.path.lexists(source)
        return ReadImage(name, state, digest, reason=reason.removesuffix(ADVICE), is_missing=is_missing)


def read_content(source: Path | bytes | Image.Image) -> Content:
    """Read a file and its state, or compute the digest of bytes or pixels.

    Raises:
        OSError: the file cannot be read.
        DataError: it is too large.
    """
    if isinstance(source, Image.Image):
        digest = hashlib.sha256(repr((source.mode, source.size)).encode() + source.tobytes()).digest()
        return Content(source, FileState(source.width * source.height * len(source.getbands()), 0, True), digest)
    if isinstance(source, bytes):
        return Content(source, FileState(len(source), 0, True), hashlib.sha256(source).digest())
    with open_regular(source) as file:
        before, now = os.fstat(file.fileno()), time.time_ns()
        if before.st_size > MAX_FILE_BYTES:
            raise UnreadableError(str(source), f"is {format_bytes(before.st_size)} long, more than 1 GiB")
        if before.st_size > MAX_JPEG_BYTES:  # not in memory, since several threads read
            digest, length = hashlib.file_digest(file, "sha256").digest(), file.tell()  # type: ignore[arg-type]
            content: bytes | Path = source
        else:
            content = file.read(before.st_size + 1)
            digest, length = hashlib.sha256(content).digest(), len(content)
        after = os.fstat(file.fileno())
    is_whole = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns) and length == after.st_size
    is_old = abs(now - after.st_mtime_ns) > RECENT_NS
    return Content(content, FileState(after.st_size, after.st_mtime_ns, is_whole and is_old), digest)


def _decode(name: str, content: Content) -> Image.Image | Tensor:
    """Decode a content: a plain JPEG to a tensor (3, H, W), another image to an RGB image."""
    source = content.source
    if isinstance(source, Image.Image):
        return to_rgb(source)
    if is_raw(name):
        return open_raw(source, name)
    start = source[:12] if isinstance(source, bytes) else b""
    if reason := missing_reader(start):
        raise ImportError(reason)
    return decode_image(source, name)


def open_decoded(source: Path | bytes | Image.Image, name: str) -> Image.Image:
    """Open an image of a source as an upright RGB image.

    Raises:
        DataError: it cannot be read.
    """
    if isinstance(source, Image.Image):
        return to_rgb(source)
    return open_raw(source, name) if is_raw(name) else open_image(source, name)
