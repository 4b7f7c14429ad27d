"""Texts to embed: lines of a file or of standard input, or a column of a table. They are read one after the other."""

from __future__ import annotations

import codecs
import csv
import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from miniclip.data.formats.columns import count_usual_names
from miniclip.data.formats.flickr_tables import is_flickr_table
from miniclip.data.formats.parquet import ParquetFile
from miniclip.data.formats.rows import MAX_CAPTION_LENGTH
from miniclip.data.formats.tables import detect_separator
from miniclip.data.formats.text_files import text_problem
from miniclip.data.skipping import SkipLog
from miniclip.errors import DataError
from miniclip.utils.checks import did_you_mean
from miniclip.utils.files import open_regular

STDIN, STDIN_NAME = "-", "standard input"
LINE_SUFFIXES = (".txt",)
CSV_SUFFIXES = (".csv", ".tsv", ".txt")
JSON_SUFFIXES = (".jsonl", ".ndjson")
COLUMN_SUFFIXES = (*CSV_SUFFIXES, *JSON_SUFFIXES, ".parquet")
BLANK = "is blank"
MAX_LINE = 4 * MAX_CAPTION_LENGTH  # characters of a line that is read at once

Cells = Iterator[tuple[int, Any]]  # number of the line or the row, and its text if it is one


class Texts:
    """Texts of a source, in order, read again by every iteration.

    Args:
        name: of the source, for messages.
        place: "line" or "row".
        read: function that yields each number and cell of the source.
        skip_log: receives blank cells and other values than text.
    """

    unit = "texts"

    def __init__(self, name: str, place: str, read: Callable[[], Cells], skip_log: SkipLog) -> None:
        self.source, self.place, self.skip_log = name, place, skip_log
        self._read = read

    def identities(self) -> Iterator[str]:
        """Yield texts that change if the source changes: a text is its own identity."""
        return iter(self)

    def fingerprint(self) -> str:
        """Return a description of the source as a whole; it is identified by its texts."""
        return "texts"

    def __iter__(self) -> Iterator[str]:
        """Yield the texts.

        Raises:
            DataError: the source is damaged.
            UnreadableError: a cell is blank or no text, and the log's `on_error` is "raise".
        """
        for number, cell in self._read():
            problem = _problem(cell)
            if problem is None:
                yield str(cell)
            else:
                self._skip(number, problem)

    def _skip(self, number: int, problem: str) -> None:
        self.skip_log.add(f"{self.source}, {self.place} {number}", f"{problem}; write a text, or remove it")


def open_texts(source: str, skip_log: SkipLog) -> Texts | None:
    """Open the texts of a source; None if it is one of images.

    Args:
        source: "-" for standard input, a .txt file with one text a line, or "table.csv?text=NAME".
        skip_log: receives blank cells.

    Raises:
        FileNotFoundError: the file does not exist.
        DataError: the table has no such column, or cannot be read.
        ValueError: a file of another kind has no columns, or it is not certain which texts are meant.
    """
    if source == STDIN:
        return Texts(STDIN_NAME, "line", _stdin_lines, skip_log)
    name, mark, query = source.rpartition("?")
    has_column = bool(mark) and query.startswith("text=") and not Path(source).expanduser().exists()
    path = Path(name if has_column else source).expanduser()
    if not has_column:
        if path.suffix.lower() not in LINE_SUFFIXES or path.is_dir():
            return None
        open_regular(path).close()
        if _is_table(path):
            raise ValueError(
                f"{path}: is a table of image captions, not one text a line; choose a column of it, as in "
                f"'{path}?text=caption', or give its folder for the images"
            )
        return Texts(str(path), "line", lambda: _lines(path), skip_log)
    column, suffix = query.removeprefix("text="), path.suffix.lower()
    if not column or "&" in column:
        raise ValueError(f"{source}: found {query!r} after the ?; expected one column, text=NAME")
    open_regular(path).close()
    if suffix not in COLUMN_SUFFIXES:
        kind = suffix or "without a suffix"
        raise ValueError(f"{path}: found a file {kind}; expected {', '.join(COLUMN_SUFFIXES)} for a column of texts")
    if suffix == ".parquet":
        return Texts(str(path), "row", lambda: _parquet(path, column), skip_log)
    read = _json_lines if suffix in JSON_SUFFIXES else _csv
    return Texts(str(path), "row" if suffix in CSV_SUFFIXES else "line", lambda: read(path, column), skip_log)


def _problem(cell: object) -> str | None:
    """Return why a cell cannot be embedded, or None."""
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return BLANK
    if not isinstance(cell, str):
        return f"holds a {type(cell).__name__}, not a text"
    if len(cell) > MAX_CAPTION_LENGTH:
        return f"has more than {MAX_CAPTION_LENGTH:,} characters"
    return text_problem(cell)


def _is_table(path: Path) -> bool:
    """Return whether the first line of a file has names of columns of images and captions, or is Flickr30k's."""
    with _text(path) as file:
        try:
            first = file.readline(MAX_LINE)
        except UnicodeDecodeError:
            return False  # reported with its line
    return is_flickr_table(first) or count_usual_names(first.split(detect_separator(path, first, None))) > 1


def _stdin_lines() -> Cells:
    yield from _numbered(io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8-sig"), STDIN_NAME)


def _lines(path: Path) -> Cells:
    with _text(path) as file:
        yield from _numbered(file, str(path))


def _numbered(file: Any, name: str) -> Cells:
    """Yield the lines of a file without their ends, and their numbers from 1; blank lines at the end do not count."""
    number = blank = 0
    try:
        while line := file.readline(MAX_LINE):
            number += 1
            if len(line) == MAX_LINE:
                raise DataError(
                    f"{name}, line {number}: has more than {MAX_LINE:,} characters; expected one text a line"
                )
            if not line.strip():
                blank += 1
                continue
            yield from ((earlier, "") for earlier in range(number - blank, number))
            blank = 0
            yield number, line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        byte = error.object[error.start : error.start + 1]
        raise DataError(f"{name}, line {number + 1} or later: byte {byte!r} is not UTF-8; save it as UTF-8") from error


@contextmanager
def _text(path: Path) -> Iterator[Any]:
    """Context with a file opened as UTF-8, with or without a byte order mark, or UTF-16 with one."""
    with open_regular(path) as file:
        yield io.TextIOWrapper(
            file, encoding=_encoding(file), newline="" if path.suffix.lower() in CSV_SUFFIXES else None
        )


def _encoding(file: BinaryIO) -> str:
    start = file.read(2)
    file.seek(0)
    return "utf-16" if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def _csv(path: Path, column: str) -> Cells:
    with _text(path) as file:
        first = file.readline(MAX_LINE)
        separator = detect_separator(path, first, column)
        rows = csv.reader(chain([first], iter(lambda: file.readline(MAX_LINE), "")), delimiter=separator, strict=True)
        number = 1
        try:
            header = [name.strip() for name in next(rows, [])]
            place = header.index(_required(path, column, header))
            for number, row in enumerate((row for row in rows if row), 1):
                if len(row) != len(header):
                    raise DataError(f"{path}, row {number}: has {len(row)} fields; the first line has {len(header)}")
                yield number, row[place]
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(
                f"{path}, after row {number}: cannot be parsed: {error}; save it as CSV in UTF-8"
            ) from error


def _json_lines(path: Path, column: str) -> Cells:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number}: cannot be parsed as JSON: {error}") from error
        if not isinstance(record, dict):
            raise DataError(f"{path}, line {number}: holds a {type(record).__name__}; expected an object")
        if number == 1:
            _required(path, column, list(record))
        yield number, record.get(column)


def _parquet(path: Path, column: str) -> Cells:
    file = ParquetFile(path)
    if not file.is_text(_required(path, column, file.header)):
        raise DataError(f"{path}: the column {column!r} does not hold text")
    yield from enumerate(file.stream(column), 1)


def _required(path: Path, column: str, header: list[str]) -> str:
    if column not in header:
        raise DataError(f"{path}: no column {column!r}{did_you_mean(column, header)}")
    return column
