"""Folders of images with a text file beside each: `dog.jpg` and `dog.txt`, one caption a line."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from miniclip.data.formats.rows import ImageRow, ImageRows
from miniclip.data.formats.text_files import read_text
from miniclip.data.skipping import SkipLog
from miniclip.data.splits import SPLIT_NAMES
from miniclip.errors import DataError

# Suffixes from cameras, phones, the web and drawing programs. The content decides the format when a file is opened.
IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2", ".ppm")
)


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
    images, texts = _find_images_and_texts(root)
    if not images:
        raise DataError(f"{root}: holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    text_of = {path: _text_beside(path, texts) for path in images}
    if not any(text_of.values()):
        raise DataError(
            f"{root}: holds {len(images):,} images and no text files beside them; write the captions of dog.jpg into "
            "dog.txt, one a line"
        )
    return ImageRows(root, _read_rows(root, text_of, skip_log), "images with text files beside them")


def holds_images_with_texts(root: Path) -> bool:
    """Return whether any image at or below a folder has a text file beside it."""
    images, texts = _find_images_and_texts(root)
    return bool(texts) and any(_text_beside(path, texts) for path in images)


def _read_rows(root: Path, text_of: Mapping[Path, Path | None], skip_log: SkipLog) -> Iterator[ImageRow]:
    tops = {path: path.relative_to(root).parts[0].lower() for path in text_of}
    splits = tops if all(top in SPLIT_NAMES for top in tops.values()) else {}
    counts = Counter(text_of.values())
    for path, text in text_of.items():
        if text is None:
            skip_log.add(str(path), f"has no {path.stem}.txt beside it; write one, with one caption a line")
            continue
        if counts[text] > 1:
            reason = f"shares {text.name} with another image; write the captions of each into a file of its own"
            skip_log.add(str(path), f"{reason}, such as {path.name}.txt")
            continue
        try:
            captions = read_text(text, skip_log.on_error).splitlines()
        except OSError as error:
            skip_log.add(str(text), f"cannot be read: {error.strerror}")
            continue
        yield ImageRow(str(text), path.relative_to(root).as_posix(), captions, splits.get(path), path)


def _find_images_and_texts(root: Path) -> tuple[list[Path], set[Path]]:
    """List the files below a folder; links to folders are followed once."""
    images, texts, visited = [], set(), set()
    for folder, below, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        below[:] = sorted(name for name in below if real not in visited and not name.startswith((".", "__MACOSX")))
        if real in visited:
            continue
        visited.add(real)
        files = [Path(folder, name) for name in sorted(names) if not name.startswith(".")]
        images += [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
        texts |= {path for path in files if path.suffix.lower() == ".txt"}
    return images, texts


def _text_beside(path: Path, texts: set[Path]) -> Path | None:
    """Return `dog.jpg.txt`, which some tools write, or `dog.txt`."""
    candidates = (path.with_name(path.name + ".txt"), path.with_suffix(".txt"), path.with_suffix(".TXT"))
    return next((text for text in candidates if text in texts), None)
