"""A text file to its text: UTF-8 with or without a byte order mark, UTF-16 with one; other bytes are named."""

from __future__ import annotations

import codecs
from pathlib import Path

from miniclip.data.skipping import OnError
from miniclip.errors import DataError


def read_text(path: Path, on_error: OnError = "raise") -> str:
    """Read a text file; line ends are left as they are.

    Args:
        path: the file.
        on_error: with "skip", bytes that are no UTF-8 come out as lone surrogates, which `not_text` then finds in the
            one caption or name that holds them.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: the bytes are in another encoding; the message has the line and the byte.
    """
    if not path.is_file():
        other = "no regular file" if path.exists() else "there is no such file"
        found = "a folder, not a file" if path.is_dir() else other
        raise FileNotFoundError(f"{path}: {found}")
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding, name = "utf-16", "UTF-16, as its byte order mark says it is"
    else:
        encoding, name = "utf-8-sig", "UTF-8"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        if on_error == "skip" and encoding == "utf-8-sig":
            return data.decode(encoding, "surrogateescape")
        line = data.count(b"\n", 0, error.start) + 1
        found_bytes = data[error.start : error.start + 1]
        raise DataError(
            f"{path}, line {line}: byte {found_bytes!r} (at {error.start:,}) is not {name}; save the file as UTF-8 "
            "(in a spreadsheet: as CSV UTF-8)"
        ) from error


def not_text(text: str) -> str | None:
    """Why a string cannot be used as text; None where it can."""
    if "\0" in text:
        return "holds a NUL byte; is the file UTF-16 without a byte order mark? save it as UTF-8"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        number = ord(text[error.start])
        if 0xDC80 <= number <= 0xDCFF:  # what the decoder makes of a byte that it cannot read
            return f"byte {bytes([number - 0xDC00])!r} is not UTF-8; save the file as UTF-8"
        return f"holds half a character (\\u{number:04x}); write it anew"
    return None
