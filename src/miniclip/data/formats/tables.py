"""CSV and TSV tables: a row for each caption, or a row for each image with a list of captions.

The first line names the columns. Quoting is CSV's: a field with the separator, a quote or a line end is in double
quotes, and its own quotes are doubled. Many TSV files have lone quotes; if quoting fails there, quotes are literal.
"""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple, TypeAlias

from miniclip.data.formats.cells import optional_text, read_cells
from miniclip.data.formats.columns import (
    ColumnNames,
    Columns,
    choose_columns,
    count_usual_names,
    warn_of_other_captions,
)
from miniclip.data.formats.flickr_tables import is_flickr_table, read_flickr_table
from miniclip.data.formats.rows import ImageRow, ImageRows
from miniclip.data.formats.text_files import read_text
from miniclip.data.skipping import SkipLog
from miniclip.errors import DataError
from miniclip.utils.formatting import short

SEPARATORS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "pipe"}


Check: TypeAlias = Callable[[Sequence[str]], str | None]  # from the fields of a row to its problem


class CsvRecord(NamedTuple):
    """Fields of a row, the number of its first line, and the problem if it cannot be parsed."""

    line: int
    fields: list[str]
    problem: str | None = None


def read_table(
    path: Path,
    skip_log: SkipLog,
    names: ColumnNames,
    split: str | None = None,
    separator: str | None = None,
) -> ImageRows:
    """Read a CSV or TSV file.

    Args:
        path: the file.
        skip_log: receives the rows that cannot be used.
        names: columns that the user chose.
        split: the split of all rows, without a column of splits.
        separator: between fields; None: the one that gives the first line the most usual names.

    Raises:
        FileNotFoundError: the file does not exist.
        DataError: a column is missing, a row cannot be parsed, or the file has another encoding.
        ValueError: the separator is not one character.
    """
    lines = list(io.StringIO(read_text(path, skip_log.on_error), newline=""))
    if not lines or not lines[0].strip():
        raise DataError(f"{path}, line 1: is empty; the first line must name the columns, such as image,caption")
    if "\0" in lines[0]:
        raise DataError(
            f"{path}, line 1: holds NUL bytes; if the file is UTF-16 without a byte order mark, save it as UTF-8"
        )
    if separator is not None and (len(separator) != 1 or separator in '"\r\n'):
        raise ValueError(f"separator is {separator!r}; expected one character, such as ',' or a tab")
    if separator is None and names == ColumnNames() and is_flickr_table(lines[0]):
        return read_flickr_table(path, lines[0], skip_log, split)
    separator = separator or detect_separator(path, lines[0], names.image)
    records = _parsed(lines, separator)
    if not records:
        raise DataError(f"{path}, line 1: names no columns; the first line must name them, such as image,caption")
    if records[0].problem:
        raise DataError(f"{path}, line 1: {records[0].problem}")
    header = [name.strip() for name in records[0].fields]
    columns = choose_columns(f"{path}, line 1", header, names)
    warn_of_other_captions(f"{path}, line 1", header, columns, names)
    joins = [header.index(name) for name in columns.captions] == [len(header) - 1]
    if any("\n" in field for record in records for field in record.fields):
        check = functools.partial(_swallowed, header.index(columns.image), len(header), separator)
        records = _parsed(lines, separator, check)
    records = [_fit(record, len(header), separator, joins) for record in records[1:]]
    return ImageRows(
        path,
        _read_rows(path, records, header, columns, split, skip_log),
        f"{path.name}, separated by {_separator_name(separator)}, {columns}",
        exact_split=columns.split is not None,
    )


def _read_rows(
    path: Path, records: Sequence[CsvRecord], header: list[str], columns: Columns, split: str | None, skip_log: SkipLog
) -> Iterator[ImageRow]:
    image = header.index(columns.image)
    captions = [header.index(name) for name in columns.captions]
    split_field, group_field = (None if name is None else header.index(name) for name in (columns.split, columns.group))
    for line, fields, problem in records:
        location = f"{path}, line {line}"
        texts: list[object] = []
        if problem is None:
            texts, problem = read_cells(fields[k] for k in captions)
        if problem is not None:
            skip_log.add(location, problem)
            continue
        own_split = split if split_field is None else fields[split_field]
        group = None if group_field is None else optional_text(fields[group_field]) or ""
        yield ImageRow(location, fields[image].strip(), texts, own_split, group=group)


def _separator_name(separator: str) -> str:
    return SEPARATORS.get(separator, repr(separator))


def detect_separator(path: Path, header: str, image: str | None) -> str:
    """Return the separator that gives the header the most usual names; in a tie, that of the file's suffix."""
    default = "\t" if path.suffix.lower() in {".tsv", ".tab"} else ","
    best, best_score = default, -1
    for separator in sorted(SEPARATORS, key=lambda separator: separator != default):
        try:
            names = next(csv.reader([header.strip("\r\n")], delimiter=separator), [])
        except csv.Error:  # a field is longer than csv allows, if the header is long and has another separator
            continue
        score = 2 * count_usual_names(names) + (image is not None and image in map(str.strip, names))
        if score > best_score:
            best, best_score = separator, score
    return best


def _parsed(lines: Sequence[str], separator: str, check: Check = lambda fields: None) -> list[CsvRecord]:
    """Parse the rows; in a file with tabs, quotes are literal if a row has a problem otherwise."""
    records = list(_parse(lines, separator, csv.QUOTE_MINIMAL, check))
    if separator == "\t" and any(record.problem for record in records):
        records = list(_parse(lines, separator, csv.QUOTE_NONE, check))
    return records


def _parse(lines: Sequence[str], separator: str, quoting: int, check: Check) -> Iterator[CsvRecord]:
    """Parse the rows; after one that cannot be parsed, or does not pass the check, continue with the next line."""
    start = 0
    while start < len(lines):
        rest = (lines[k] for k in range(start, len(lines)))
        reader = csv.reader(rest, delimiter=separator, quoting=quoting, strict=True)  # type: ignore[arg-type]
        first = start
        try:
            for fields in reader:
                if problem := check(fields):
                    yield CsvRecord(first + 1, [], problem)
                    break
                if any(field.strip() for field in fields):
                    yield CsvRecord(first + 1, fields)
                first = start + reader.line_num
            else:
                return
            start = first + 1
        except csv.Error as error:
            yield CsvRecord(first + 1, [], _explain(error))
            start = first + 1


def _swallowed(image: int, width: int, separator: str, fields: Sequence[str]) -> str | None:
    """Return the problem of a row whose quoted field holds other rows: a lone quote begins it, another one ends it.

    Args:
        image: position of the column of images.
        width: number of columns.
        separator: between fields.
        fields: those of the row.
    """
    suffix = PurePath(fields[image].strip()).suffix.lower() if image < len(fields) else ""
    for line in (line for field in fields for line in field.splitlines()[1:]):
        inner = line.split(separator)
        if suffix and len(inner) == width and PurePath(inner[image].strip()).suffix.lower() == suffix:
            return (
                f"a double quote is opened, and not closed before the row of {short(inner[image])}; close it, or "
                'double it ("") if it is part of the text'
            )
    return None


def _explain(error: csv.Error) -> str:
    message = str(error)
    if "field limit" in message:
        return f"a field has more than {csv.field_size_limit():,} characters; close an open quote"
    if "unexpected end" in message:
        return 'a double quote is opened and never closed; close it, or double it ("") if it is part of the text'
    if "expected after" in message:
        return 'text after a closing double quote; double a quote inside a quoted field ("")'
    return f"cannot be parsed: {message}"


def _fit(record: CsvRecord, width: int, separator: str, joins: bool) -> CsvRecord:
    """Give a row as many fields as there are columns, or a problem.

    Args:
        record: the row.
        width: number of columns.
        separator: between fields.
        joins: the caption is the last field and may hold separators.
    """
    if record.problem is not None or len(record.fields) == width:
        return record
    fields = list(record.fields)
    while len(fields) > width and not fields[-1].strip():  # spreadsheets end lines with separators
        fields.pop()
    if len(fields) > width and joins:
        fields[width - 1 :] = [separator.join(fields[width - 1 :])]
    if len(fields) == width:
        return record._replace(fields=fields)
    name = _separator_name(separator)
    return record._replace(
        problem=f"found {len(fields)} fields, separated by {name}, expected {width}; put a field that holds a {name} "
        "in double quotes"
    )
