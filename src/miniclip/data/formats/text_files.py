"""Decoding of text files: UTF-8 with or without a byte order mark, and UTF-16 with one."""

from __future__ import annotations

import codecs
from pathlib import Path

from miniclip.data.skipping import OnError
from miniclip.errors import DataError
from miniclip.utils.files import read_limited

MAX_TEXT_BYTES = 4 << 30  # a table is read at once, and takes several times its size in memory


def read_text(path: Path, on_error: OnError = "raise") -> str:
    """Read a text file without changing its line ends.

    Args:
        path: the file.
        on_error: with "skip", bytes that are not UTF-8 become lone surrogates. `text_problem` then finds the one
            caption or name that holds them.

    Raises:
        FileNotFoundError: the path is not a regular file.
        DataError: the file is too large, or has another encoding; the message then has the line and the byte.
    """
    try:
        data = read_limited(path, MAX_TEXT_BYTES)
    except (ValueError, MemoryError) as error:
        reason = str(error) or "does not fit in this machine's memory"
        raise DataError(f"{path}: {reason}; split it into several files, or write it as parquet") from error
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding, label = "utf-16", "UTF-16, the encoding of its byte order mark"
    else:
        encoding, label = "utf-8-sig", "UTF-8"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        if on_error == "skip" and encoding == "utf-8-sig":
            return data.decode(encoding, "surrogateescape")
        line = data.count(b"\n", 0, error.start) + 1
        byte = data[error.start : error.start + 1]
        raise DataError(
            f"{path}, line {line}: byte {byte!r} (at {error.start:,}) is not {label}; save the file as UTF-8 "
            "(in a spreadsheet: CSV UTF-8)"
        ) from error


def text_problem(text: str) -> str | None:
    """Return the reason why a string cannot be used as text, or None."""
    if "\0" in text:
        return "holds a NUL byte; if the file is UTF-16 without a byte order mark, save it as UTF-8"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        if 0xDC80 <= code <= 0xDCFF:  # from surrogateescape: a byte that could not be decoded
            return f"byte {bytes([code - 0xDC00])!r} is not UTF-8; save the file as UTF-8"
        return f"holds half a surrogate pair (\\u{code:04x}); write the character again"
    return None
