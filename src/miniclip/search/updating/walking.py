"""Image files at and below a folder, with the state of each."""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from miniclip.data.decoding import RAW_SUFFIXES
from miniclip.data.formats.folder import IMAGE_SUFFIXES
from miniclip.search.database import DATABASE
from miniclip.search.store import FileState
from miniclip.utils.system_errors import system_message

# Formats that Pillow opens and does not decode, or that can be compressed without a limit.
NOT_DECODED = frozenset(("BUFR", "EPS", "FITS", "GRIB", "HDF5", "MPEG", "WMF"))


class Listed(NamedTuple):
    """One image of a source.

    Attributes:
        key: the file, or the image's index in a dataset.
        state: size and time of the file; None: only the content tells whether it has changed.
    """

    key: Path | int
    state: FileState | None


class Listing(NamedTuple):
    """Images of a source.

    Attributes:
        images: by name, in order.
        problems: why a folder or a file cannot be listed, by its name. The name of a folder ends with a slash.
        broken_links: names of links to nothing, with a slash at their ends; each may have been a link to a folder.
    """

    images: dict[str, Listed]
    problems: dict[str, str]
    broken_links: list[str]


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Return the suffixes, in lower case, of files that are images, of cameras too."""
    Image.init()
    formats = Image.registered_extensions().items()
    return IMAGE_SUFFIXES | RAW_SUFFIXES | {suffix for suffix, name in formats if name in decoded_formats()}


def decoded_formats() -> set[str]:
    """Return the names of the formats that Pillow decodes."""
    return set(Image.OPEN) - NOT_DECODED


def walk(root: Path) -> Listing:
    """List the images at and below a folder, by their paths relative to it, sorted.

    Names that begin with a dot and directories of indexes are skipped. Links to folders are followed, each folder once.
    A file of a camera is skipped if another image beside it has its name, as cameras write both.
    """
    listing = Listing({}, {}, [])
    _walk(str(root), "", listing, set())
    return listing._replace(images=dict(sorted(listing.images.items())))


def _walk(folder: str, prefix: str, listing: Listing, visited: set[tuple[int, int]]) -> None:
    """Add the images of a folder and of those below it."""
    pending = [(folder, prefix)]
    while pending:
        folder, prefix = pending.pop()
        try:
            status = os.stat(folder)  # noqa: PTH116  # Path objects of a million files are slow
            identity = (status.st_dev, status.st_ino)
            if identity in visited:
                continue
            visited.add(identity)
            with os.scandir(folder) as entries:
                below = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda e: e.name)
            if not _is_index(below):
                pending += _add_files(below, prefix, listing)
        except OSError as error:
            listing.problems[prefix] = system_message(error)


def _is_index(entries: list[os.DirEntry[str]]) -> bool:
    """Return whether a folder is an index; another program can have a file of the same name as the database."""
    names = [entry.name for entry in entries]
    return DATABASE in names and any(name.startswith("vectors-") and name.endswith(".f16") for name in names)


def _add_files(entries: list[os.DirEntry[str]], prefix: str, listing: Listing) -> Iterator[tuple[str, str]]:
    """Add the images of a folder; yield the folders in it with the start of their names, the first last."""
    folders: list[tuple[str, str]] = []
    raw, stems = [], set()
    for entry in entries:
        suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122
        try:
            if entry.is_dir():
                if entry.name != "__MACOSX":
                    folders.append((entry.path, f"{prefix}{entry.name}/"))
            elif suffix in RAW_SUFFIXES:
                raw.append(entry)
            elif suffix in image_suffixes():
                stems.add(entry.name[: -len(suffix)])
                _add(entry, prefix, listing)
            elif entry.is_symlink() and not os.path.exists(entry.path):  # noqa: PTH110
                listing.broken_links.append(f"{prefix}{entry.name}/")
        except OSError as error:
            listing.problems[prefix + entry.name] = system_message(error)
    for entry in raw:
        if os.path.splitext(entry.name)[0] not in stems:  # noqa: PTH122
            _add(entry, prefix, listing)
    yield from reversed(folders)


def _add(entry: os.DirEntry[str], prefix: str, listing: Listing) -> None:
    name = prefix + entry.name
    try:
        status = entry.stat()
    except OSError as error:
        broken = entry.is_symlink()
        listing.problems[name] = "is a link to a file that does not exist" if broken else system_message(error)
        return
    if not stat.S_ISREG(status.st_mode):
        listing.problems[name] = "is not a regular file"
        return
    listing.images[name] = Listed(Path(entry.path), FileState.of(status))
