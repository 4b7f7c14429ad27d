"""Checks of output paths before long work, so that its results can be written."""

from __future__ import annotations

import tempfile
from pathlib import Path

from miniclip.utils.system_errors import system_message


def require_output_file(path: str | Path, name: str, suffix: str | None = None) -> Path:
    """Check that a file can be written; an existing one is replaced.

    Args:
        path: the file, whose folders need not exist.
        name: its name in messages, such as "--json".
        suffix: the only suffix allowed, such as ".png"; None: any.

    Raises:
        OSError: the path is a folder or a device, or its folder cannot be written.
        ValueError: the suffix is another one.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(
            f"{name} {path}: is a folder; expected a file, as in {path / ('result' + (suffix or '.txt'))}"
        )
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{name} {path}: is not a regular file; choose another name")
    if suffix is not None and path.suffix.lower() != suffix:
        raise ValueError(f"{name} {path}: expected a name that ends with {suffix}")
    _require_writable(path.parent, f"{name} {path}")
    return path


def require_output_folder(path: str | Path, name: str) -> Path:
    """Check that files can be written into a folder, which need not exist.

    Raises:
        OSError: the path is a file, or it cannot be written.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{name} {path}: is a file; expected a folder")
    _require_writable(path, f"{name} {path}")
    return path


def _require_writable(folder: Path, about: str) -> None:
    """Try to write into a folder, or into the nearest one above it that exists."""
    place = next((each for each in (folder, *folder.parents) if each.exists()), Path())
    if not place.is_dir():
        raise NotADirectoryError(f"{about}: {place} is a file; expected a folder")
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        error.filename = None
        raise type(error)(f"{about}: cannot be written: {system_message(error)}") from None
