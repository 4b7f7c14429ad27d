"""Search for the tables of a folder: those with columns of images and captions, by their first rows.

Names decide nothing: a folder may hold logs, lists of URLs and settings beside its captions.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from miniclip.data.formats.coco_files import any_coco_file, find_images
from miniclip.data.formats.columns import ColumnNames, choose_columns
from miniclip.data.formats.files import find_files, list_folder
from miniclip.data.formats.flickr_tables import is_flickr_table
from miniclip.data.formats.json_layouts import first_entries, holds_captions, json_files, json_layout, read_head
from miniclip.data.formats.json_lines import first_objects
from miniclip.data.formats.multifile import JSON_SUFFIXES, find_parquet, split_of
from miniclip.data.formats.parquet import ParquetFile
from miniclip.data.formats.rows import is_url
from miniclip.data.formats.tables import detect_separator
from miniclip.data.splits import SPLIT_NAMES
from miniclip.errors import DataError

PEEKED_ROWS = 20
LINE_SUFFIXES = (".csv", ".tsv", ".tab", ".jsonl", ".ndjson")


class FoundTables(NamedTuple):
    """Tables of a folder.

    Attributes:
        paths: the tables.
        hold_images: they hold images, or lead to files; false for URLs, for names of missing files, and for
            tables without a column of images or of captions.
    """

    paths: list[Path]
    hold_images: bool


def find_tables(root: Path, names: ColumnNames) -> FoundTables:
    """Find the tables of a folder: parquet files; else tables that hold images; else other tables, for a message.

    Args:
        root: the folder.
        names: columns that the user chose.
    """
    parquet = find_parquet(root)
    if parquet and _holds_images(parquet[0], root, names):
        return FoundTables(parquet, True)
    tables = _tables_in(root, names)
    with_images = [path for path in tables if _holds_images(path, root, names)]
    if with_images:
        return FoundTables(with_images, True)
    return FoundTables([path for path in tables if _first_images(path, names) is not None] or parquet or tables, False)


def one_dataset(root: Path, tables: list[Path]) -> list[Path]:
    """Return the tables that make up one dataset: parquet files, one table, or one for each split.

    Raises:
        DataError: there are several, and their names do not give a split each.
    """
    if all(path.suffix.lower() == ".parquet" for path in tables):
        return tables
    tables = [path for path in tables if path.stem == "metadata"] or tables
    splits = [split_of(path) for path in tables]
    if len(tables) > 1 and (None in splits or len(set(splits)) < len(splits)):
        names = ", ".join(str(path.relative_to(root)) for path in tables[:5])
        raise DataError(f"{root}: holds {len(tables)} tables ({names}); give one of them, as a file")
    return tables


def _tables_in(root: Path, names: ColumnNames) -> list[Path]:
    below = list_folder(root)[1]
    folders = [root, *(root / name for name in below if name.lower() in SPLIT_NAMES)]
    tables = [
        folder / name
        for folder in folders
        for name in list_folder(folder)[0]
        if name.lower().endswith(LINE_SUFFIXES) and (folder / name).is_file()
    ]
    folders += [root / name for name in below if name.lower().startswith("annotation")]
    return tables + [path for folder in folders for path in json_files(folder) if _is_json_table(path, names)]


def _is_json_table(path: Path, names: ColumnNames) -> bool:
    """Return whether a JSON file has images with captions; folders hold settings and statistics as JSON too."""
    if json_layout(path) == "coco":
        return holds_captions(path)
    return _first_images(path, names) is not None


def _holds_images(path: Path, root: Path, names: ColumnNames) -> bool:
    """Return whether a table stores images, or its first rows lead to files."""
    images = _first_images(path, names)
    if not images:
        return False
    if any(not isinstance(image, str) for image in images):
        return True
    paths = [image for image in images if isinstance(image, str) and image and not is_url(image)]
    if path.suffix.lower() == ".json" and json_layout(path) == "coco":
        return bool(find_images(any_coco_file(path, None), paths))
    return any(find_files(base, paths)[1] for base in dict.fromkeys((path.parent, root)))


def _first_images(path: Path, names: ColumnNames) -> list[object] | None:
    """Return the first images of a table, by name or stored; None if it has no columns of images and captions."""
    try:
        if path.suffix.lower() == ".parquet":
            return _of_parquet(path, names)
        if path.suffix.lower() in JSON_SUFFIXES:
            return _of_json(path, names)
        return _of_lines(path, names)
    except (DataError, OSError, ImportError):
        return None


def _of_parquet(path: Path, names: ColumnNames) -> list[object]:
    file = ParquetFile(path)
    column = choose_columns(path, file.header, names).image
    return list(file.first_values(column, PEEKED_ROWS)) if file.is_text(column) else [b"stored"]


def _of_lines(path: Path, names: ColumnNames) -> list[object] | None:
    lines = [line for line in read_head(path).splitlines() if line.strip()][: PEEKED_ROWS + 1]
    if not lines:
        return None
    if is_flickr_table(lines[0]):
        return [line.split("|")[0].strip() for line in lines[1:]]
    separator = detect_separator(path, lines[0], names.image)
    header = [name.strip() for name in next(csv.reader(lines[:1], delimiter=separator), [])]
    position = header.index(choose_columns(path, header, names).image)
    rows = csv.reader(lines[1:], delimiter=separator)
    return [row[position].strip() for row in _rows_of(rows) if len(row) > position]


def _rows_of(rows: Iterable[list[str]]) -> list[list[str]]:
    """Return the rows before the first that cannot be parsed."""
    result: list[list[str]] = []
    with suppress(csv.Error):
        result.extend(rows)
    return result


def _of_json(path: Path, names: ColumnNames) -> list[object] | None:
    if json_layout(path) != "table":
        entries = islice(first_entries(read_head(path)), PEEKED_ROWS)
        return [str(entry.get("file_name") or entry.get("filename")) for entry in entries]
    if path.suffix.lower() == ".json" and not _may_be_captions(path):
        return None
    objects = first_objects(path, names, PEEKED_ROWS)
    column = choose_columns(path, list(objects[0]) if objects else [], names).image
    return [content[column] for content in objects if isinstance(content.get(column), str)]


def _may_be_captions(path: Path) -> bool:
    """Return whether the start of a JSON file has words of captions or a name of an image; others are not read."""
    head = read_head(path).lower()
    return any(word in head for word in ("caption", "sentence", "text", "comment", ".jp", ".png", ".webp"))
