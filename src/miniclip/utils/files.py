"""Guarded reading of files that a user or another file names, and of the JSON in them.

A path may lead to a pipe, which waits for its writer, or to a device, which never ends. A few bytes of JSON can nest
brackets deeper than the parser's stack.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from miniclip.utils.formatting import format_bytes

MAX_JSON = 16 << 20  # bytes of a configuration, which usually has some KiB
KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
MISSING = {
    errno.ENOENT: "no such file",
    errno.ENOTDIR: "no such file: a part of the path is not a directory",
    errno.ELOOP: "links in a circle",
    errno.ENAMETOOLONG: "no such file: the name is too long",
}
SYSTEM = (os.sep + "proc" + os.sep, os.sep + "sys" + os.sep)  # their files can block, and have no end


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading in bytes, without waiting for the writer of a pipe.

    Raises:
        FileNotFoundError: the path is missing or not a regular file; the message names the path and its kind.
        PermissionError: this user may not read it.
    """
    name = str(path) if str(path).isprintable() else ascii(str(path))
    try:
        if kind := irregular_kind(path):
            raise FileNotFoundError(f"{name}: {kind}; expected a regular file")
        return Path(path).open("rb")
    except PermissionError:
        raise PermissionError(f"{name}: this user may not read it: change its permissions") from None
    except ValueError:  # a NUL byte, or half a surrogate pair
        raise FileNotFoundError(f"{name}: no such file: not a path of this system") from None
    except OSError as error:
        if error.errno not in MISSING:  # among them the two errors above, which have no number
            raise
        is_link = error.errno == errno.ENOENT and Path(path).is_symlink()
        reason = f"a link to {Path(path).readlink()}, which does not exist" if is_link else MISSING[error.errno]
        raise FileNotFoundError(f"{name}: {reason}") from None


def irregular_kind(path: str | os.PathLike[str]) -> str | None:
    """Return the kind of a file that must not be read as one, such as "a directory"; None for a regular file.

    Raises:
        OSError: the path is missing, or cannot be reached.
    """
    status = Path(path).stat()
    if not stat.S_ISREG(status.st_mode):
        return KINDS.get(stat.S_IFMT(status.st_mode), "not a regular file")
    has_no_end = not getattr(status, "st_blocks", 1) and os.path.realpath(path).startswith(SYSTEM)
    return "a file of the system's kernel" if has_no_end else None


def read_limited(path: str | os.PathLike[str], limit: int = MAX_JSON) -> bytes:
    """Read a whole regular file.

    Args:
        path: the file.
        limit: maximum size, in bytes.

    Raises:
        FileNotFoundError, PermissionError: see `open_regular`.
        ValueError: the file is larger; the message does not name it.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise ValueError(f"{format_bytes(size)} long, expected at most {format_bytes(limit)}")
        return file.read(size)


def parse_json(text: str | bytes) -> Any:
    """Parse JSON; bytes are UTF-8, with or without a byte order mark.

    Raises:
        ValueError: it is not JSON, or nested too deeply to be a file of any use; the message is one line.
    """
    try:
        return json.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None
