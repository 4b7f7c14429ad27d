"""CSV and TSV: a line a caption, or a line a picture with a list of captions, the columns named by the first line.

Quotes are CSV's: a field that holds the separator, a quote or a line end is in double quotes, its own quotes doubled.
A file separated by tabs in which that does not work out (many such files have lone quotes) is read with quotes as they
stand.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from miniclip.data.formats.columns import Columns, as_list, choose, recognised
from miniclip.data.formats.rows import Entry
from miniclip.data.formats.text_files import read_text
from miniclip.data.skipping import SkipLog
from miniclip.errors import DataError

SEPARATORS = (",", "\t", ";", "|")
_NAMES = {",": "comma", "\t": "tab", ";": "semicolon", "|": "pipe"}


class Record(NamedTuple):
    """One row of a table: the line that it begins in, its fields, and what is wrong with it."""

    line: int
    fields: list[str]
    problem: str | None = None


class Table(NamedTuple):
    """A table that is open: its columns by name, and its rows."""

    path: Path
    columns: Columns
    header: list[str]
    separator: str
    records: list[Record]

    @property
    def about(self) -> str:
        """What was found, in words."""
        return f"{self.path.name}, separated by {_NAMES.get(self.separator, repr(self.separator))}, {self.columns}"


def open_table(
    path: Path,
    skip_log: SkipLog,
    image: str | None = None,
    caption: str | Sequence[str] | None = None,
    separator: str | None = None,
) -> Table:
    """Read a table.

    Args:
        path: the file.
        skip_log: takes the rows that cannot be taken apart.
        image: the pictures' column; None: by a usual name.
        caption: the captions' column or columns; likewise.
        separator: between fields; None: the one that makes sense of the first line.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: a column is not there, a row cannot be taken apart, the bytes are in another encoding.
    """
    lines = list(io.StringIO(read_text(path, skip_log.on_error), newline=""))
    if not lines or not "".join(lines[:1]).strip():
        raise DataError(f"{path}, line 1: is empty; the first line must name the columns, such as image,caption")
    if "\0" in lines[0]:
        raise DataError(f"{path}, line 1: holds NUL bytes; is it UTF-16 without a byte order mark? save it as UTF-8")
    separator = separator or _sniff(path, lines[0], image)
    records = list(_records(lines, separator, csv.QUOTE_MINIMAL))
    if separator == "\t" and any(record.problem for record in records):
        records = list(_records(lines, separator, csv.QUOTE_NONE))
    if records[0].problem:
        raise DataError(f"{path}, line 1: {records[0].problem}")
    header = [name.strip() for name in records[0].fields]
    return Table(path, choose(f"{path}, line 1", header, image, caption), header, separator, records[1:])


def read_table(table: Table, skip_log: SkipLog, split: str | None = None) -> Iterator[Entry]:
    """The rows of a table; each is a picture with one or more captions.

    Args:
        table: an open one.
        skip_log: takes the rows that cannot be used.
        split: of all of them, where the file's name says it.
    """
    columns, header = table.columns, table.header
    image = header.index(columns.image)
    captions = [header.index(name) for name in columns.captions]
    own_split = None if columns.split is None else header.index(columns.split)
    folder = f"{table.path.parent.absolute()}{os.sep}"
    joins = captions == [len(header) - 1]  # a caption at a line's end may go on after a separator
    cells = (fields[captions[0]] for _, fields, problem in _rows(table, joins) if problem is None)
    lists = len(captions) == 1 and _are_lists(cells)
    for line, fields, problem in _rows(table, joins):
        where = f"{table.path}, line {line}"
        if problem is not None:
            skip_log.add(where, problem)
            continue
        own: list[str] = [fields[k] for k in captions]
        if lists:
            own = as_list(own[0]) or []
        name = _below(fields[image].strip(), folder)
        yield Entry(where, name, own, split if own_split is None else fields[own_split])


def _rows(table: Table, joins: bool) -> Iterator[Record]:
    return (_fitted(record, len(table.header), table.separator, joins) for record in table.records)


def _sniff(path: Path, line: str, image: str | None) -> str:
    """The separator that makes most sense of the first line; where none does, the one of the file's kind."""
    usual = "\t" if path.suffix.lower() in {".tsv", ".tab"} else ","
    best, score = usual, -1
    for separator in sorted(SEPARATORS, key=lambda one: one != usual):
        names = next(csv.reader([line.strip("\r\n")], delimiter=separator), [])
        found = 2 * recognised(names) + (image is not None and image in map(str.strip, names))
        if found > score:
            best, score = separator, found
    return best


def _records(lines: Sequence[str], separator: str, quoting: int) -> Iterator[Record]:
    """The rows; after one that cannot be taken apart it goes on with the next line."""
    start = 0
    while start < len(lines):
        reader = csv.reader(iter(_from(lines, start)), delimiter=separator, quoting=quoting, strict=True)  # type: ignore[arg-type]
        begun = start
        try:
            for fields in reader:
                if any(field.strip() for field in fields):
                    yield Record(begun + 1, fields)
                begun = start + reader.line_num
            return
        except csv.Error as error:
            yield Record(begun + 1, [], _why(error))
            start = begun + 1


def _from(lines: Sequence[str], start: int) -> Iterator[str]:
    return (lines[k] for k in range(start, len(lines)))


def _why(error: csv.Error) -> str:
    text = str(error)
    if "field limit" in text:
        return f"a field of more than {csv.field_size_limit():,} characters: a quote that is never closed? close it"
    if "unexpected end" in text:
        return 'a double quote is opened and never closed; close it, or write it twice ("") where it is meant'
    if "expected after" in text:
        return 'text after a closing double quote; a quote inside of a quoted field is written twice ("")'
    return f"cannot be taken apart: {text}"


def _fitted(record: Record, width: int, separator: str, joins: bool) -> Record:
    """A row with as many fields as there are columns, or with what is wrong."""
    if record.problem is not None or len(record.fields) == width:
        return record
    fields = list(record.fields)
    while len(fields) > width and not fields[-1].strip():  # spreadsheets end lines with separators
        fields.pop()
    if len(fields) > width and joins:
        fields[width - 1 :] = [separator.join(fields[width - 1 :])]
    if len(fields) != width:
        name = _NAMES.get(separator, repr(separator))
        problem = (
            f"found {len(fields)} fields, separated by {name}, expected {width}; put a field that holds a {name} in "
            "double quotes"
        )
        return record._replace(problem=problem)
    return record._replace(fields=fields)


def _are_lists(cells: Iterator[str]) -> bool:
    """Whether a column is one of lists: every cell that is not blank."""
    some = False
    for cell in cells:
        if cell.strip():
            if as_list(cell) is None:
                return False
            some = True
    return some


def _below(name: str, folder: str) -> str:
    """An absolute path as one from the folder on, where it lies in it: a set that moves keeps its drawn split."""
    return name.removeprefix(folder)
