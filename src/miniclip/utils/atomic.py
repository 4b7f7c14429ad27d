"""Writing a file at once or not at all."""

import contextlib
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}")  # the names that it writes to: a kill may leave one


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a temporary file in the target's directory, then rename it over the target.

    Raises:
        OSError: as the disk raises it; the target is as it was, and the temporary file is gone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _sync_folder(path: Path) -> None:
    """See that a new name outlives a power cut too, where the system can."""
    with contextlib.suppress(OSError):
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
