"""Columns of a table: chosen by the user, or recognised by their usual names."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from miniclip.data.dataset import StoredImage
from miniclip.data.formats.cells import optional_text, read_cells
from miniclip.data.formats.rows import ImageRow
from miniclip.data.skipping import SkipLog
from miniclip.errors import DataError
from miniclip.utils.checks import did_you_mean
from miniclip.utils.option_names import option

# Usual names in lower case; the first that exists is taken.
IMAGE_COLUMNS = (
    "image",
    "images",
    "image_path",
    "img_path",
    "filepath",
    "file_path",
    "path",
    "image_file",
    "image_name",
    "filename",
    "file_name",
    "file",
    "img",
    "picture",
    "photo",
    "jpg",  # img2dataset names the column by the format of the images
    "jpeg",
    "png",
    "webp",
    "image_url",
    "url",
)
CAPTION_COLUMNS = (
    "caption",
    "captions",
    "text",
    "texts",
    "txt",
    "comment",
    "sentence",
    "sentences",
    "raw",
    "description",
    "title",
    "alt_text",
    "alt",
    "prompt",
)
SPLIT_COLUMN = "split"
NAME_COLUMNS = ("filename", "file_name", "image_name", "image_id", "img_id", "imgid", "cocoid")
MAX_LISTED = 20  # column names in a message
MAX_COMPARED = 1_000  # column names that are searched for the nearest to a wrong one
_CAPTION_WORD = re.compile(r"(?:^|[^a-z])captions?(?:[^a-z]|$)")
_ABOUT = "id|ids|number|count|num|length|len|lang|language|source|score|index|model"  # as in caption_id
_NOT_CAPTIONS = re.compile(rf"(?:^|[^a-z])(?:{_ABOUT})(?:[^a-z]|$)")
_NUMBERED = re.compile(rf"({'|'.join(CAPTION_COLUMNS)})[ _-]?[0-9]+")


class ColumnNames(NamedTuple):
    """Columns that the user chose.

    Attributes:
        image: the column of images or their paths; None: the first of `IMAGE_COLUMNS`.
        caption: the column or columns of captions; None: the first of `CAPTION_COLUMNS`, or caption_0, caption_1, ….
        group: the column of groups, such as products, whose images a drawn split keeps together; None: none.
    """

    image: str | None = None
    caption: str | Sequence[str] | None = None
    group: str | None = None


class Columns(NamedTuple):
    """Columns of a table, by name.

    Attributes:
        image: images, or their paths.
        captions: one column of captions, or several.
        split: splits; None without such a column.
        name: names of images that are stored in the table; None without such a column.
        group: groups that a drawn split keeps together; None without such a column.
    """

    image: str
    captions: tuple[str, ...]
    split: str | None
    name: str | None
    group: str | None = None

    def __str__(self) -> str:
        return f"images from {self.image!r}, captions from {', '.join(map(repr, self.captions))}"


def choose_columns(source: Path | str, header: Sequence[str], names: ColumnNames) -> Columns:
    """Choose the columns of a table.

    Args:
        source: the table, for messages.
        header: its columns.
        names: those that the user chose.

    Raises:
        DataError: a column is missing, or it is not certain which one is meant; the message lists the header.
    """
    by_lower = {column.strip().lower(): column for column in reversed(header)}
    image = _require(source, header, names.image) if names.image else _first_usual(by_lower, IMAGE_COLUMNS)
    if names.caption is None:
        captions = _usual_captions(source, by_lower, header)
    else:
        chosen = (names.caption,) if isinstance(names.caption, str) else tuple(names.caption)
        captions = tuple(_require(source, header, name) for name in chosen)
    if image is None:
        raise _no_usual_name(source, header, "image", IMAGE_COLUMNS)
    if not captions:
        raise _no_usual_name(source, header, "caption", CAPTION_COLUMNS)
    name = _first_usual(by_lower, [name for name in NAME_COLUMNS if by_lower.get(name) != image])
    group = None if names.group is None else _require(source, header, names.group)
    columns = Columns(image, captions, by_lower.get(SPLIT_COLUMN), name, group)
    _require_unique(source, header, columns, names)
    return columns


def warn_of_other_captions(source: Path | str, header: Sequence[str], columns: Columns, names: ColumnNames) -> None:
    """Warn if columns that were not chosen, such as "alt_caption", probably hold captions too."""
    if names.caption is not None:
        return
    others = [
        column
        for column in header[:MAX_COMPARED]
        if column not in (*columns.captions, columns.image)
        and _CAPTION_WORD.search(column.strip().lower())
        and not _NOT_CAPTIONS.search(column.strip().lower())
    ]
    if others:
        warnings.warn(
            f"{source}: captions are read from {_listed(columns.captions)} and not from {_listed(others)}; choose one "
            f"or several with {option('caption=')}",
            stacklevel=3,
        )


def _require_unique(source: Path | str, header: Sequence[str], columns: Columns, names: ColumnNames) -> None:
    """Check that no two columns have one name; for columns that were recognised, in any case of the letters."""
    chosen = [*([columns.image] if names.image else []), *(columns.captions if names.caption else ()), columns.group]
    counts = Counter(column.strip().lower() for column in header)
    for column in filter(None, (columns.image, *columns.captions, columns.split, columns.group)):
        if list(header).count(column) > 1 or (column not in chosen and counts[column.strip().lower()] > 1):
            raise DataError(f"{source}: two columns are called {column!r}; rename them, such as caption_0, caption_1")


def count_usual_names(header: Iterable[str]) -> int:
    """Count the usual column names: a measure of how plausible a header is."""
    usual = {*IMAGE_COLUMNS, *CAPTION_COLUMNS, SPLIT_COLUMN, *NAME_COLUMNS}
    return sum(name in usual or bool(_NUMBERED.fullmatch(name)) for name in (name.strip().lower() for name in header))


def _require(source: Path | str, header: Sequence[str], name: str) -> str:
    if name not in header:
        listed_by = None if len(header) <= MAX_LISTED else f"{source}"
        raise DataError(f"{source}: no column {name!r}{did_you_mean(str(name), header[:MAX_COMPARED], listed_by)}")
    return name


def _first_usual(by_lower: dict[str, str], usual: Sequence[str]) -> str | None:
    return next((by_lower[name] for name in usual if name in by_lower), None)


def _usual_captions(source: Path | str, by_lower: dict[str, str], header: Sequence[str]) -> tuple[str, ...]:
    """Return the columns of the first usual name, such as "caption", "captions", "caption_0" and "caption_1".

    Raises:
        DataError: numbered columns have several names, such as "text_1" and "caption_1", or another than the first.
    """
    numbered: dict[str, list[str]] = {}
    for column in header:
        match = _NUMBERED.fullmatch(column.strip().lower())
        if match is not None:
            numbered.setdefault(match[1].rstrip("s"), []).append(column)
    usual = [name for name in CAPTION_COLUMNS if name in by_lower]
    stem = usual[0].rstrip("s") if usual else next(iter(numbered), "")
    others = [column for name, columns in numbered.items() if name != stem for column in columns]
    captions = [by_lower[name] for name in usual if name.rstrip("s") == stem] + numbered.get(stem, [])
    if others:
        raise DataError(
            f"{source}: found the caption columns {_listed([*captions, *others])}; choose one or several with caption="
        )
    return tuple(captions)


def _no_usual_name(source: Path | str, header: Sequence[str], kind: str, usual: Sequence[str]) -> DataError:
    return DataError(
        f"{source}: found the columns {_listed(header)}, and none with a usual name for the {kind}s "
        f"({', '.join(usual[:6])}, …); choose the column with {option(kind + '=')}, or write the column names into the "
        "first line"
    )


def _listed(columns: Sequence[str]) -> str:
    more = f" and {len(columns) - MAX_LISTED:,} more" if len(columns) > MAX_LISTED else ""
    return ", ".join(repr(column[:80]) for column in columns[:MAX_LISTED]) + more


class ColumnTable(Protocol):
    """Table that is read by columns, and may store the images itself: parquet, or a Hugging Face dataset."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def is_text(self, column: str) -> bool:
        """Return whether a column holds text, such as paths."""

    def values(self, column: str) -> list[Any]:
        """Read all values of a column; class labels are given by their names.

        Raises:
            DataError: a value cannot be read.
        """

    def image(self, row: int) -> StoredImage:
        """Return the stored image of a row, without reading it. Its `str` is the row's location."""

    def row_name(self, row: int) -> str:
        """Return the name of an image without a name of its own."""


def read_columns(
    table: ColumnTable,
    columns: Columns,
    skip_log: SkipLog,
    split: str | None = None,
    left_out: Collection[int] = (),
) -> Iterator[ImageRow]:
    """Read the rows of a table: each has an image with a caption, or a list of captions.

    A stored image has one row, unless a column such as `filename` or `image_id` names it.

    Args:
        table: the table.
        columns: its columns.
        skip_log: receives the rows that cannot be used.
        split: the split of all rows, without a column of splits.
        left_out: rows without an image.
    """
    paths = table.values(columns.image) if table.is_text(columns.image) else None
    captions = [table.values(name) for name in columns.captions]
    names = table.values(columns.name) if columns.name else None
    splits = table.values(columns.split) if columns.split else None
    groups = table.values(columns.group) if columns.group else None
    for row in range(len(table)):
        if row in left_out:
            continue
        image = table.image(row)
        texts, problem = read_cells(column[row] for column in captions)
        if problem is not None:
            skip_log.add(str(image), problem)
            continue
        row_split = split if splits is None else optional_text(splits[row])
        group = None if groups is None else optional_text(groups[row]) or ""
        if paths is not None:
            yield ImageRow(str(image), optional_text(paths[row]) or "", texts, row_split, group=group)
        else:
            name = None if names is None else optional_text(names[row])
            yield ImageRow(str(image), name or table.row_name(row), texts, row_split, image, group)
