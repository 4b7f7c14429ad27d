"""From the rows of any layout to the captioned images of one split.

Each reader returns `ImageRows`. `select` then does for all of them:
1. clean captions: write numbers as text, drop blank captions, skip other types;
2. group the rows of one image;
3. take the dataset's own split, or draw one;
4. find the image files; skip missing ones.
`skipping.py` has the rule for skipped rows and images.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from miniclip.data.dataset import StoredImage
from miniclip.data.formats.files import find_files
from miniclip.data.formats.options import ReadOptions
from miniclip.data.formats.text_files import text_problem
from miniclip.data.skipping import SkipLog
from miniclip.data.splits import normalize_split, resolve_splits, select_split
from miniclip.errors import DataError

MAX_CAPTION_LENGTH = 100_000  # characters; a longer one is an unclosed quote, or the text of another file

_URL = re.compile(r"(?:[a-z][a-z0-9+.-]+://|data:)", re.IGNORECASE)


class ImageRow(NamedTuple):
    """An image and some of its captions.

    Attributes:
        location: "photos.csv, line 7", for messages.
        name: the image's name in the dataset, usually a path from the dataset's folder.
        captions: strings, numbers or None.
        split: the dataset's name of the split, None if it has none.
        image: the image; None: the file that `name` leads to.
    """

    location: str
    name: str
    captions: Sequence[object]
    split: str | None = None
    image: Path | StoredImage | None = None


class ImageRows(NamedTuple):
    """All rows of a dataset.

    Attributes:
        source: file or folder that messages about the whole dataset name.
        rows: in the order of the dataset.
        about: the layout, for people.
        folder: the folder that image names start from; None: that of `source`.
        exact_split: splits come from a column or a split file, not from file names.
        split_file: the file with the split, if it is not `source`.
    """

    source: Path
    rows: Iterable[ImageRow]
    about: str
    folder: Path | None = None
    exact_split: bool = False
    split_file: Path | None = None


class Selection(NamedTuple):
    """Images of one split, in the order of the dataset: the arguments of `ImageFiles`."""

    paths: list[Path | StoredImage]
    captions: list[list[str]]
    skip_log: SkipLog
    splits: list[str]
    about: str


@dataclass(slots=True)
class _GroupedImage:
    location: str
    captions: list[str]
    split: str | None
    image: Path | StoredImage | None


def select(dataset: ImageRows, options: ReadOptions, skip_log: SkipLog) -> Selection:
    """Select the images of one split.

    Args:
        dataset: all rows.
        options: from the user.
        skip_log: from `options.new_skip_log`; the reader may have added entries.

    Raises:
        DataError: nothing is left, or too much was skipped.
        ValueError: the split does not exist.
    """
    source = dataset.source
    images, row_count = _group(dataset.rows, skip_log)
    skip_log.check_fraction(row_count)
    if not images:
        raise DataError(f"{source}: lists no images with captions{_first_entry(skip_log)}")
    given = {name: image.split for name, image in images.items()}
    splits, description = resolve_splits(given, options.seed, dataset.exact_split)
    names = select_split(list(images), splits, options.split, str(dataset.split_file or source))
    folder = dataset.folder or (source if source.is_dir() else source.parent)
    paths = _locate(folder, {name: images[name] for name in names}, skip_log)
    counts = Counter(splits[name] for name in images if name in splits)
    order = sorted(counts, key=lambda split: (("train", "val", "test", split).index(split), split))
    sizes = ", ".join(f"{split} {counts[split]:,}" for split in order)
    return Selection(
        list(paths.values()),
        [images[name].captions for name in paths],
        skip_log,
        [splits.get(name, "") for name in paths],
        f"{dataset.about}; {description}: {sizes}",
    )


def _group(rows: Iterable[ImageRow], skip_log: SkipLog) -> tuple[dict[str, _GroupedImage], int]:
    """Return the images by name, with clean captions, and the number of rows."""
    images: dict[str, _GroupedImage] = {}
    row_count = skipped = 0
    for row in rows:
        row_count += 1 + len(skip_log) - skipped  # with the rows before it that the reader skipped
        _add(row, images, skip_log)
        skipped = len(skip_log)
    row_count += len(skip_log) - skipped
    for name in [name for name, image in images.items() if not image.captions]:
        location = images.pop(name).location
        if name not in skip_log and location not in skip_log:  # else its captions are in the log
            skip_log.add(f"{location}: {name}", "has no caption that is not blank; write one, or remove the row")
    return images, row_count


def _add(row: ImageRow, images: dict[str, _GroupedImage], skip_log: SkipLog) -> None:
    """Add a row to its image."""
    problem = _name_problem(row)
    if problem is not None:
        skip_log.add(row.location, problem)
        return
    image = images.setdefault(row.name, _GroupedImage(row.location, [], row.split, row.image))
    if _same_split(image.split, row.split):
        image.captions += _clean(row, skip_log)
    else:
        skip_log.add(
            row.location, f"{row.name} has the split {image.split!r} in {image.location} and {row.split!r} here"
        )


def _same_split(first: str | None, second: str | None) -> bool:
    if first is None or second is None:
        return first is second
    return normalize_split(first) == normalize_split(second)


def _name_problem(row: ImageRow) -> str | None:
    if row.image is not None:
        return None
    if not row.name:
        return "names no image; expected a path"
    if is_url(row.name):
        shown = row.name if len(row.name) <= 80 else row.name[:80] + "…"
        return f"{shown!r} is a URL; download the images (for example with img2dataset), and give their paths"
    return text_problem(row.name)


def is_url(name: str) -> bool:
    """Return whether an image's name is a URL, "data:…" included."""
    return _URL.match(name) is not None


def _clean(row: ImageRow, skip_log: SkipLog) -> list[str]:
    """Return the captions of a row as stripped text, without blank ones."""
    captions = []
    for caption in row.captions:
        text, problem = caption_text(caption)
        if problem is not None:
            skip_log.add(row.location, problem)
        elif text:
            captions.append(text)
    return captions


def caption_text(caption: object) -> tuple[str, str | None]:
    """Return a caption as text, and its problem if it cannot be used. None and NaN are blank."""
    if isinstance(caption, str):
        text = caption.strip()
        if len(text) > MAX_CAPTION_LENGTH:
            return "", (
                f"a caption has {len(text):,} characters, more than {MAX_CAPTION_LENGTH:,}; "
                "close an open quote, or shorten it"
            )
        problem = text_problem(text)
        return text, None if problem is None else f"the caption {problem}"
    if caption is None or (isinstance(caption, float) and math.isnan(caption)):
        return "", None
    if isinstance(caption, int | float) and not isinstance(caption, bool):
        return str(caption), None
    return "", f"the caption is {str(caption)[:80]!r}, a {type(caption).__name__}; expected text"


def _locate(base: Path, images: dict[str, _GroupedImage], skip_log: SkipLog) -> dict[str, Path | StoredImage]:
    """Return the path of each image; missing files are skipped."""
    files = [name for name, image in images.items() if image.image is None]
    folder, paths = find_files(base, files)
    missing = [name for name in files if name not in paths]
    if missing and skip_log.on_error == "raise":
        first = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise DataError(
            f"{base}: {len(missing)} of the {len(images)} images with captions are missing from {folder}: {first}; "
            "add the files, or remove their rows"
        )
    missing_log = skip_log.branch()
    for name in missing:
        missing_log.add(str(folder / name), f"the file does not exist ({images[name].location})")
    missing_log.check_fraction(len(images))
    skip_log.merge(missing_log)
    located = {name: image.image or paths.get(name) for name, image in images.items()}
    existing = {name: path for name, path in located.items() if path is not None}
    if not existing:
        raise DataError(f"{base}: none of the {len(images)} image files exists{_first_entry(skip_log)}")
    return existing


def _first_entry(skip_log: SkipLog) -> str:
    for name, reason in skip_log.reasons.items():
        return f"; {len(skip_log):,} were skipped, the first: {name}: {reason}"
    return ""
