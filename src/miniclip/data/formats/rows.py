"""From the rows of any layout to the captioned images of one split.

Each reader returns `ImageRows`. `select` then does for all of them:
1. clean captions: write numbers as text, drop blank captions, skip other types;
2. group the rows of one image: the same path, or the same name and the same bytes;
3. take the dataset's own split, or draw one;
4. find the image files; skip missing ones.
`skipping.py` has the rule for skipped rows and images.
"""

from __future__ import annotations

import hashlib
import math
import os
import posixpath
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from miniclip.data.dataset import StoredImage
from miniclip.data.formats.cells import optional_text
from miniclip.data.formats.files import find_files
from miniclip.data.formats.options import ReadOptions
from miniclip.data.formats.text_files import text_problem
from miniclip.data.skipping import SkipLog
from miniclip.data.splits import join_groups, normalize_split, resolve_splits, select_split
from miniclip.errors import DataError
from miniclip.utils.option_names import option

MAX_CAPTION_LENGTH = 100_000  # characters; a longer one is an unclosed quote, or the text of another file

_NUMBER = re.compile(r"[+-]?\d+(?:\.0*)?")
_URL = re.compile(r"(?:[a-z][a-z0-9+.-]+://|data:)", re.IGNORECASE)


class ImageRow(NamedTuple):
    """An image and some of its captions.

    Attributes:
        location: "photos.csv, line 7", for messages.
        name: the image's name in the dataset: a path from the dataset's folder, or the name of a stored image.
        captions: strings, numbers or None.
        split: the dataset's name of the split, None if it has none.
        image: the image; None: the file that `name` leads to.
        group: the group that a drawn split keeps together; empty: it has none; None: no column has groups.
    """

    location: str
    name: str
    captions: Sequence[object]
    split: str | None = None
    image: Path | StoredImage | None = None
    group: str | None = None


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
    name: str  # as the first row writes it
    captions: list[str]
    split: str | None
    image: Path | StoredImage | None
    digest: bytes | None = None  # digest of a stored image, computed when a second row has its name
    groups: set[str] | None = None  # None: no column has groups


def select(dataset: ImageRows, options: ReadOptions, skip_log: SkipLog) -> Selection:
    """Select the images of one split.

    Args:
        dataset: all rows.
        options: from the user.
        skip_log: from `options.new_skip_log`; the reader may have added entries.

    Raises:
        DataError: nothing is left, too much was skipped, or the column of groups is empty.
        ValueError: the split does not exist.
    """
    source = dataset.source
    folder = dataset.folder or (source if source.is_dir() else source.parent)
    images, row_count = _group(dataset.rows, folder, skip_log)
    skip_log.check_fraction(row_count)
    if not images:
        raise DataError(f"{source}: lists no images with captions{_first_entry(skip_log)}")
    given = {name: image.split for name, image in images.items()}
    groups = _groups_of(images, source)
    splits, description = resolve_splits(given, options.seed, dataset.exact_split, groups)
    names = select_split(list(images), splits, options.split, str(dataset.split_file or source))
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


def _groups_of(images: Mapping[str, _GroupedImage], source: Path) -> dict[str, str] | None:
    """Return the group of every image; None without a column of groups.

    Raises:
        DataError: the column is empty.
    """
    groups = {name: image.groups or set() for name, image in images.items()}
    if all(image.groups is None for image in images.values()):
        return None
    without = [name for name, of in groups.items() if not of]
    if len(without) == len(groups):
        raise DataError(
            f"{source}: the column of groups is empty in every row, so that it cannot keep images together: fill it, "
            "or choose another one"
        )
    if without:
        warnings.warn(
            f"{source}: {len(without):,} of {len(groups):,} images have no group, such as {without[0]}; each is a "
            "group of its own, so that a drawn split may separate it from others of its kind",
            UserWarning,
            stacklevel=2,
        )
    return join_groups(groups)


def _group(rows: Iterable[ImageRow], folder: Path, skip_log: SkipLog) -> tuple[dict[str, _GroupedImage], int]:
    """Return the images by name, with clean captions, and the number of rows."""
    images: dict[str, _GroupedImage] = {}
    base = f"{Path(os.path.abspath(folder)).as_posix().rstrip('/')}/"  # noqa: PTH100  # without ..
    row_count = skipped = 0
    for row in rows:
        row_count += 1 + len(skip_log) - skipped  # with the rows before it that the reader skipped
        problem = _name_problem(row) or _add(row, base, images, skip_log)
        if problem is not None:
            skip_log.add(row.location, problem)
        skipped = len(skip_log)
    row_count += len(skip_log) - skipped
    for key in [key for key, image in images.items() if not image.captions]:
        image = images.pop(key)
        if image.name not in skip_log and image.location not in skip_log:  # else its captions are in the log
            reason = "has no caption that is not blank; write one, or remove the row"
            skip_log.add(f"{image.location}: {image.name}", reason)
    return images, row_count


def _add(row: ImageRow, base: str, images: dict[str, _GroupedImage], skip_log: SkipLog) -> str | None:
    """Add a row to its image, or return why it is not certain which one that is."""
    key = row.name if row.image is not None else _one_spelling(row.name, base)
    split = optional_text(row.split)
    first = images.get(key)
    difference = None if first is None else _difference(first, row)
    if first is not None and difference is not None and not _same_split(first.split, split):
        key = f"{split}/{key}"  # names of stored images often start again in each split
        first = images.get(key)
        difference = None if first is None else _difference(first, row)
    if difference is not None:
        return difference
    image = images.setdefault(key, _GroupedImage(row.location, row.name, [], split, row.image))
    if not _same_split(image.split, split):
        return f"{row.name} has the split {image.split!r} in {image.location} and {split!r} here"
    image.captions += _clean(row, skip_log)
    if row.group is not None:
        image.groups = (image.groups or set()) | ({row.group} - {""})
    return None


def refuse_numbers(source: Path | str, captions: Sequence[Sequence[str]]) -> None:
    """Check that the captions of a column that the user chose are not only whole numbers, which are labels.

    Raises:
        DataError: all of them are whole numbers.
    """
    if captions and all(_NUMBER.fullmatch(caption) for texts in captions for caption in texts):
        raise DataError(
            f"{source}: all captions are numbers, such as {captions[0][0]!r}; a text encoder learns nothing from the "
            "number of a class: write the name of the class, or choose another column of captions with "
            f"{option('caption=')}"
        )


def _one_spelling(name: str, base: str) -> str:
    r"""Return one spelling of a path: `images\a.jpg`, `./images/a.jpg` and the absolute path are `images/a.jpg`."""
    return posixpath.normpath(name.replace("\\", "/")).removeprefix(base)


def _difference(first: _GroupedImage, row: ImageRow) -> str | None:
    """Return why two rows of one name are not certain to hold the same image; None if they are."""
    if row.image is None or first.image is None or isinstance(row.image, Path) or isinstance(first.image, Path):
        return None if row.image == first.image else f"{row.name} is another file in {first.location}"
    advice = (
        "rows of one name are captions of one image: give every image a name of its own, or remove the column of "
        "names, such as filename or image_id, so that each row is an image"
    )
    try:
        first.digest = first.digest or hashlib.sha256(first.image.read()).digest()
        same = hashlib.sha256(row.image.read()).digest() == first.digest
    except DataError as error:
        return f"has the name {row.name!r} of {first.location}, and the images cannot be compared ({error}); {advice}"
    return None if same else f"has the name {row.name!r} of {first.location}, and another image; {advice}"


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
        advice = "download the images (for example with img2dataset), and give their paths"
        return f"{_shortened(row.name)!r} is a URL; {advice}"
    return text_problem(row.name)


def _shortened(name: str) -> str:
    short = name if len(name) <= 80 else name[:80] + "…"
    return short if short.isprintable() else repr(short)[1:-1]  # in one line


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
    return "", f"the caption is {shown(caption)!r}, a {type(caption).__name__}; expected text"


def shown(value: object) -> str:
    """Return the start of a value as text, for messages."""
    try:
        return str(value)[:80]
    except (ValueError, RecursionError):  # an integer of thousands of digits, deep nesting
        return "…"


def _locate(base: Path, images: dict[str, _GroupedImage], skip_log: SkipLog) -> dict[str, Path | StoredImage]:
    """Return the path of each image; missing files are skipped."""
    files = {key: image.name for key, image in images.items() if image.image is None}
    folder, paths = find_files(base, list(files.values()))
    missing = {key: name for key, name in files.items() if name not in paths}
    if missing and skip_log.on_error == "raise":
        first = ", ".join(map(_shortened, list(missing.values())[:3])) + (", …" if len(missing) > 3 else "")
        raise DataError(
            f"{base}: {len(missing)} of the {len(images)} images with captions are missing from {folder}: {first}; "
            "add the files, or remove their rows"
        )
    missing_log = skip_log.branch()
    for key, name in missing.items():
        missing_log.add(str(folder / name), f"the file does not exist ({images[key].location})")
    missing_log.check_fraction(len(images))
    skip_log.merge(missing_log)
    located = {key: image.image or paths.get(image.name) for key, image in images.items()}
    existing: dict[str, Path | StoredImage] = {}
    first_names: dict[Path, str] = {}
    for key, path in located.items():
        if isinstance(path, Path) and (other := first_names.setdefault(path, key)) != key:
            reason = f"{images[key].name} and {images[other].name} ({images[other].location}) lead to one file, {path}"
            skip_log.add(images[key].location, f"{reason}; write its name in one way")
        elif path is not None:
            existing[key] = path
    if not existing:
        raise DataError(f"{base}: none of the {len(images)} image files exists{_first_entry(skip_log)}")
    return existing


def _first_entry(skip_log: SkipLog) -> str:
    for name, reason in skip_log.reasons.items():
        return f"; {len(skip_log):,} were skipped, the first: {name}: {reason}"
    return ""
