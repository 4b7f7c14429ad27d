"""A folder of pictures with a text file beside each: `dog.jpg` and `dog.txt`, one caption a line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from miniclip.data.formats.rows import Entry
from miniclip.data.formats.text_files import read_text
from miniclip.data.skipping import SkipLog
from miniclip.data.splits import MEANING
from miniclip.errors import DataError

# What cameras, phones, the web and drawing programs write; what is in a file says what it is when it is opened.
SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2", ".ppm")
)


def read_folder(root: Path, skip_log: SkipLog) -> Iterator[Entry]:
    """The pictures at or below a folder, by name, with the captions beside them.

    Files and folders whose names begin with a dot are passed over, and so are text files without a picture. Folders
    directly below that are called train, val, test (or another word for these), all of them, are the split.

    Raises:
        FileNotFoundError: there is no such folder.
        DataError: there are no pictures, or none has a text file beside it.
    """
    if not root.is_dir():
        found = "a file, not a folder" if root.exists() else "nothing there"
        raise FileNotFoundError(f"{root}: {found}; give a folder of pictures with text files beside them")
    pictures, texts = _pictures_and_texts(root)
    if not pictures:
        raise DataError(f"{root}: holds no pictures ({', '.join(sorted(SUFFIXES))})")
    beside = {path: _text_beside(path, texts) for path in pictures}
    if not any(beside.values()):
        raise DataError(
            f"{root}: holds {len(pictures):,} pictures and no text files beside them; write the captions of dog.jpg "
            "into dog.txt, one a line"
        )
    splits = _splits(root, pictures)
    for path, text in beside.items():
        name = path.relative_to(root).as_posix()
        if text is None:
            skip_log.add(str(path), f"has no {path.stem}.txt beside it; write one, with a caption a line")
            continue
        try:
            captions = read_text(text, skip_log.on_error).splitlines()
        except OSError as error:
            skip_log.add(str(text), f"cannot be read: {error.strerror}")
            continue
        yield Entry(str(text), name, captions, splits.get(path), path)


def holds_pictures_with_texts(root: Path) -> bool:
    """Whether `read_folder` has something to read."""
    pictures, texts = _pictures_and_texts(root)
    return bool(texts) and any(_text_beside(path, texts) for path in pictures)


def _pictures_and_texts(root: Path) -> tuple[list[Path], set[Path]]:
    """The files below a folder, links to folders followed once."""
    pictures, texts, seen = [], set(), set()
    for folder, below, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        below[:] = sorted(name for name in below if real not in seen and not name.startswith((".", "__MACOSX")))
        if real in seen:
            continue
        seen.add(real)
        found = [Path(folder, name) for name in sorted(names) if not name.startswith(".")]
        pictures += [path for path in found if path.suffix.lower() in SUFFIXES]
        texts |= {path for path in found if path.suffix.lower() == ".txt"}
    return pictures, texts


def _text_beside(path: Path, texts: set[Path]) -> Path | None:
    """`dog.txt`, or `dog.jpg.txt` where people write that."""
    candidates = (path.with_suffix(".txt"), path.with_suffix(".TXT"), path.with_name(path.name + ".txt"))
    return next((text for text in candidates if text in texts), None)


def _splits(root: Path, pictures: list[Path]) -> dict[Path, str]:
    tops = {path: path.relative_to(root).parts[0].lower() for path in pictures}
    return tops if all(top in MEANING for top in tops.values()) else {}
