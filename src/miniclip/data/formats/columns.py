"""Columns of a table: chosen by the user, or recognised by their usual names."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from miniclip.data.dataset import StoredImage
from miniclip.data.formats.rows import ImageRow
from miniclip.errors import DataError
from miniclip.utils.checks import did_you_mean

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
_NUMBERED = re.compile(r"(caption|comment|sentence|text|raw|description)[ _-]?[0-9]+")


class ColumnNames(NamedTuple):
    """Columns that the user chose.

    Attributes:
        image: the column of images or their paths; None: the first of `IMAGE_COLUMNS`.
        caption: the column or columns of captions; None: the first of `CAPTION_COLUMNS`, or caption_0, caption_1, ….
    """

    image: str | None = None
    caption: str | Sequence[str] | None = None


class Columns(NamedTuple):
    """Columns of a table, by name.

    Attributes:
        image: images, or their paths.
        captions: one column of captions, or several.
        split: splits; None without such a column.
        name: names of images that are stored in the table; None without such a column.
    """

    image: str
    captions: tuple[str, ...]
    split: str | None
    name: str | None

    def __str__(self) -> str:
        return f"images from {self.image!r}, captions from {', '.join(map(repr, self.captions))}"


def choose_columns(source: Path | str, header: Sequence[str], names: ColumnNames) -> Columns:
    """Choose the columns of a table.

    Args:
        source: the table, for messages.
        header: its columns.
        names: those that the user chose.

    Raises:
        DataError: a column is missing; the message lists the header.
    """
    by_lower = {column.strip().lower(): column for column in reversed(header)}
    image = _require(source, header, names.image) if names.image else _first_usual(by_lower, IMAGE_COLUMNS)
    if names.caption is None:
        captions = _usual_captions(by_lower, header)
    else:
        chosen = (names.caption,) if isinstance(names.caption, str) else tuple(names.caption)
        captions = tuple(_require(source, header, name) for name in chosen)
    if image is None:
        raise _no_usual_name(source, header, "image", IMAGE_COLUMNS)
    if not captions:
        raise _no_usual_name(source, header, "caption", CAPTION_COLUMNS)
    duplicate = next((column for column in (image, *captions) if list(header).count(column) > 1), None)
    if duplicate is not None:
        raise DataError(f"{source}: two columns are called {duplicate!r}; rename them, such as caption_0, caption_1")
    name = _first_usual(by_lower, [name for name in NAME_COLUMNS if by_lower.get(name) != image])
    return Columns(image, captions, by_lower.get(SPLIT_COLUMN), name)


def count_usual_names(header: Iterable[str]) -> int:
    """Count the usual column names: a measure of how plausible a header is."""
    usual = {*IMAGE_COLUMNS, *CAPTION_COLUMNS, SPLIT_COLUMN, *NAME_COLUMNS}
    return sum(name in usual or bool(_NUMBERED.fullmatch(name)) for name in (name.strip().lower() for name in header))


def _require(source: Path | str, header: Sequence[str], name: str) -> str:
    if name not in header:
        raise DataError(f"{source}: no column {name!r}{did_you_mean(name, header)}")
    return name


def _first_usual(by_lower: dict[str, str], usual: Sequence[str]) -> str | None:
    return next((by_lower[name] for name in usual if name in by_lower), None)


def _usual_captions(by_lower: dict[str, str], header: Sequence[str]) -> tuple[str, ...]:
    column = _first_usual(by_lower, CAPTION_COLUMNS)
    return (column,) if column else tuple(name for name in header if _NUMBERED.fullmatch(name.strip().lower()))


def _no_usual_name(source: Path | str, header: Sequence[str], kind: str, usual: Sequence[str]) -> DataError:
    return DataError(
        f"{source}: found the columns {', '.join(map(repr, header))}, and none with a usual name for the {kind}s "
        f"({', '.join(usual[:6])}, …); choose the column with {kind}=, or write the column names into the first line"
    )


# Cells


def to_list(cell: object) -> list[object]:
    """Return the captions of a cell, one or a list of them, as a list."""
    return list(cell) if isinstance(cell, list) else [cell]


def parse_list(cell: str) -> list[Any] | None:
    """Parse a cell that holds a list of strings in JSON or Python notation; None for any other."""
    cell = cell.strip()
    if not (cell.startswith("[") and cell.endswith("]")):
        return None
    try:
        value = json.loads(cell)
    except ValueError:
        try:
            value = ast.literal_eval(cell)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    return value if isinstance(value, list) and all(isinstance(item, str) for item in value) else None


class ColumnTable(Protocol):
    """Table that is read by columns, and may store the images itself: parquet, or a Hugging Face dataset."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def is_text(self, column: str) -> bool:
        """Return whether a column holds text, such as paths."""

    def values(self, column: str) -> list[Any]:
        """Read all values of a column."""

    def image(self, row: int) -> StoredImage:
        """Return the stored image of a row, without reading it. Its `str` is the row's location."""

    def row_name(self, row: int) -> str:
        """Return the name of an image without a name of its own."""


def read_columns(table: ColumnTable, columns: Columns, split: str | None = None) -> Iterator[ImageRow]:
    """Read the rows of a table: each has an image with a caption, or a list of captions.

    A stored image has one row, unless a column such as `filename` or `image_id` names it.

    Args:
        table: the table.
        columns: its columns.
        split: of all rows, if there is no column of splits.
    """
    paths = table.values(columns.image) if table.is_text(columns.image) else None
    captions = [table.values(name) for name in columns.captions]
    names = table.values(columns.name) if columns.name else None
    splits = table.values(columns.split) if columns.split else None
    for row in range(len(table)):
        image = table.image(row)
        texts = [caption for column in captions for caption in to_list(column[row])]
        row_split = split if splits is None else None if splits[row] is None else str(splits[row])
        if paths is not None:
            yield ImageRow(str(image), str(paths[row] or "").strip(), texts, row_split)
        else:
            name = table.row_name(row) if names is None or names[row] is None else str(names[row])
            yield ImageRow(str(image), name, texts, row_split, image)
