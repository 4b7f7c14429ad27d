"""Atomic writing of files."""

import contextlib
import os
import re
import secrets
from collections.abc import Callable, Mapping
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
    write_together({path: write})


def write_together(writes: Mapping[Path, Callable[[Path], object]]) -> None:
    """Write files under temporary names and flush them; when all are complete, rename them in the order given.

    Args:
        writes: the function that writes a file at the path that it gets, by target.

    Raises:
        OSError: writing failed; the targets are unchanged and the temporary files are deleted.
    """
    temporaries = {path: path.with_name(f".{path.name}.{secrets.token_hex(4)}") for path in writes}
    try:
        for path, write in writes.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write(temporaries[path])
            with temporaries[path].open("rb") as file:
                os.fsync(file.fileno())
        for path, temporary in temporaries.items():
            temporary.replace(path)
        for folder in {path.parent for path in writes}:
            _sync_directory(folder)
    except BaseException:
        for temporary in temporaries.values():
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
