"""Atomic writing of files."""

import contextlib
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path

TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{8}")  # a temporary name and its target; a killed process can leave a file


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name in the same directory, flush it, and rename it to the target.

    Args:
        path: the target; its directory is created if missing.
        write: function that writes a file at the path that it gets.

    Raises:
        OSError: writing failed; the target is unchanged and the temporary file is deleted.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_directory(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _sync_directory(path: Path) -> None:
    """Flush a directory, so that a new name survives a power failure; not every system supports it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
