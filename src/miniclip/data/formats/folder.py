"""Folders of images with a text file beside each: `dog.jpg` and `dog.txt` or `dog.caption`, one caption a line."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from miniclip.data.decoding import RAW_SUFFIXES, unread_format
from miniclip.data.formats.rows import ImageRow, ImageRows
from miniclip.data.formats.text_files import read_text
from miniclip.data.skipping import SkipLog
from miniclip.data.splits import SPLIT_NAMES
from miniclip.errors import DataError, UnreadableError

# Suffixes from cameras, phones, the web and drawing programs. The content decides the format when a file is opened.
IMAGE_SUFFIXES = frozenset(
    [
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif"),
        *(".heic", ".heif", ".hif", ".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".tga", ".ico", ".psd"),
    ]
)
# Images that Pillow does not read: of cameras, drawings, and formats that are too new.
UNREAD_SUFFIXES = RAW_SUFFIXES | {".svg", ".eps", ".xcf", ".jxl", ".jxr", ".exr", ".hdr"}
HEIF_SUFFIXES = (".heic", ".heif", ".hif")
TEXT_SUFFIXES = (".txt", ".caption")


def read_folder(root: Path, skip_log: SkipLog) -> ImageRows:
    """Read the images at or below a folder, sorted by name, with the captions beside them.

    Files and folders whose names begin with a dot are ignored, as are text files without an image. If all folders
    directly below the root are named after splits, they are the split.

    Raises:
        FileNotFoundError: the folder does not exist.
        DataError: it has no images, or none with a text file.
    """
    if not root.is_dir():
        problem = "a file, not a folder" if root.exists() else "the folder does not exist"
        raise FileNotFoundError(f"{root}: {problem}; give a folder of images with text files beside them")
    files = _find_files(root)
    if not files.images:
        raise DataError(f"{root}: holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}){_named(files.unread)}")
    texts_of = {path: _texts_beside(path, files.texts) for path in files.images}
    if not any(texts_of.values()):
        raise DataError(
            f"{root}: holds {len(files.images):,} images and no text files beside them; write the captions of dog.jpg "
            "into dog.txt, one a line, or add a table such as captions.csv with the columns image and caption"
        )
    for path in files.unread:
        skip_log.add(str(path), _not_read(path))
    return ImageRows(root, _read_rows(root, texts_of, skip_log), "images with text files beside them")


def find_images(root: Path) -> list[Path]:
    """Return the images at or below a folder, sorted; files and folders whose names begin with a dot are ignored.

    Raises:
        UnreadableError: one is in a format that is not read.
    """
    files = _find_files(root)
    if files.unread:
        raise UnreadableError(str(files.unread[0]), _not_read(files.unread[0]))
    return sorted(files.images)


def holds_images(root: Path) -> bool:
    """Return whether there is an image at or below a folder, in any format."""
    return any(files.images or files.unread for files in _walk(root))


def holds_images_with_texts(root: Path) -> bool:
    """Return whether any image at or below a folder has a text file beside it."""
    return any(_texts_beside(path, files.texts) for files in _walk(root) for path in files.images)


class _Files(NamedTuple):
    """Files of folders: images, images in formats that are not read, and the paths of text files."""

    images: list[Path]
    unread: list[Path]
    texts: set[str]


def _read_rows(root: Path, texts_of: Mapping[Path, Sequence[Path]], skip_log: SkipLog) -> Iterator[ImageRow]:
    tops = {path: path.relative_to(root).parts[0].lower() for path in texts_of}
    splits = tops if all(top in SPLIT_NAMES for top in tops.values()) else {}
    counts = Counter(text for texts in texts_of.values() for text in texts)
    for path, texts in texts_of.items():
        if not texts:
            skip_log.add(str(path), f"has no {path.stem}.txt beside it; write one, with one caption a line")
            continue
        if counts[texts[0]] > 1:
            reason = f"shares {texts[0].name} with another image; write the captions of each into a file of its own"
            skip_log.add(str(path), f"{reason}, such as {path.name}.txt")
            continue
        try:
            captions = [_read_captions(text, skip_log) for text in texts]
        except OSError as error:
            skip_log.add(str(path), f"its text file cannot be read: {error.strerror}")
            continue
        problem = unread_format(path) if path.suffix.lower() in HEIF_SUFFIXES else None
        if any(lines != captions[0] for lines in captions):
            problem = f"has the texts {', '.join(text.name for text in texts)}, which differ; keep one of them"
        if problem is not None:
            skip_log.add(str(path), problem)
            continue
        yield ImageRow(str(texts[0]), path.relative_to(root).as_posix(), captions[0], splits.get(path), path)


def _read_captions(path: Path, skip_log: SkipLog) -> list[str]:
    return read_text(path, skip_log.on_error).splitlines()


def _find_files(root: Path) -> _Files:
    """List the files at or below a folder."""
    found = _Files([], [], set())
    for files in _walk(root):
        found.images.extend(files.images)
        found.unread.extend(files.unread)
        found.texts.update(files.texts)
    return found


def _walk(root: Path) -> Iterator[_Files]:
    """Yield the files of a folder and of each folder below it; links to folders are followed once."""
    visited = set()
    for folder, below, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        below[:] = sorted(name for name in below if real not in visited and not name.startswith((".", "__MACOSX")))
        if real in visited:
            continue
        visited.add(real)
        suffixes = {name: _suffix(name) for name in sorted(names) if not name.startswith(".")}
        images = [Path(folder, name) for name, suffix in suffixes.items() if suffix in IMAGE_SUFFIXES]
        unread = [Path(folder, name) for name, suffix in suffixes.items() if suffix in UNREAD_SUFFIXES]
        stems = {path.stem for path in images} if unread else set()  # a camera writes IMG_1.JPG beside IMG_1.CR2
        texts = {os.path.join(folder, name) for name, suffix in suffixes.items() if suffix in TEXT_SUFFIXES}  # noqa: PTH118
        yield _Files(images, [path for path in unread if path.stem not in stems], texts)


def _suffix(name: str) -> str:
    return name[name.rfind(".") :].lower()


def _texts_beside(path: Path, texts: set[str]) -> list[Path]:
    """Return `dog.jpg.txt`, which some tools write, or `dog.txt` and `dog.caption`."""
    name = str(path)
    stem = name.removesuffix(path.suffix)
    own = [name + suffix for suffix in TEXT_SUFFIXES]
    shared = [stem + suffix for suffix in (*TEXT_SUFFIXES, *map(str.upper, TEXT_SUFFIXES))]
    return [Path(text) for text in own if text in texts] or [Path(text) for text in shared if text in texts]


def _not_read(path: Path) -> str:
    return f"is an image in a format that is not read ({path.suffix}); convert it to JPEG, or remove it"


def _named(unread: Sequence[Path]) -> str:
    """Return the end of a message that names images which are not read."""
    if not unread:
        return ""
    return f", and {len(unread):,} images in formats that are not read, such as {unread[0].name}; convert them to JPEG"
