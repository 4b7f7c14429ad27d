"""Parquet files: captions read at once, pictures from their row groups as they are asked for.

A picture is a path, the bytes of a file, or what the `datasets` library writes: {"bytes": …, "path": …}. A row group is
read as a whole and the last ones are kept, so reading in order is fast; for training at random, pack the set.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from miniclip.data.formats.columns import Columns, choose
from miniclip.data.formats.rows import Entry
from miniclip.errors import DataError

KEPT = 2  # row groups of a file that stay in memory, in each process


class ParquetImage:
    """A picture in a row of a parquet file."""

    def __init__(self, file: ParquetFile, row: int) -> None:
        self.file, self.row = file, row

    def __str__(self) -> str:
        return f"{self.file.path}, row {self.row}"

    def read(self) -> bytes:
        """The bytes of the picture file.

        Raises:
            DataError: there are none, or the file cannot be read.
        """
        cell: Any = self.file.cell(self.row)
        path: str | None = None
        if isinstance(cell, dict):
            cell, path = cell.get("bytes"), cell.get("path")
        if cell is None and path:
            try:
                return (self.file.path.parent / path).read_bytes()
            except OSError as error:
                raise DataError(f"{self}: the path {path!r} cannot be read: {error.strerror}") from error
        if isinstance(cell, bytes):
            return cell
        raise DataError(f"{self}: holds no picture, neither bytes nor a path; take the row out")


class ParquetFile:
    """One parquet file: its columns, and single cells of the pictures' column. Travels to worker processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._column = ""
        self._starts: list[int] = []
        self._groups: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()
        self._process = os.getpid()
        file = self._open()
        self.columns: list[str] = list(file.schema_arrow.names)
        start = 0
        for group in range(file.metadata.num_row_groups):
            self._starts.append(start)
            start += file.metadata.row_group(group).num_rows
        self.rows = start

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_groups": OrderedDict(), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def is_text(self, column: str) -> bool:
        """Whether a column holds text and not, for example, pictures."""
        from pyarrow import types

        kind = self._open().schema_arrow.field(column).type
        kind = kind.value_type if types.is_dictionary(kind) else kind
        return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))

    def values(self, column: str) -> list[Any]:
        """All values of a column."""
        found: list[Any] = self._read(lambda file: file.read(columns=[column]).column(0).to_pylist())
        return found

    def pictures_from(self, column: str) -> None:
        """Say which column holds the pictures."""
        self._column = column

    def cell(self, row: int) -> Any:
        """The picture of a row, as it is stored."""
        group = bisect_right(self._starts, row) - 1
        if self._process != os.getpid():  # a fork took the lock as it was
            self._lock, self._process = threading.Lock(), os.getpid()
        with self._lock:
            if group not in self._groups:
                table = self._read(lambda file: file.read_row_group(group, columns=[self._column]))
                while len(self._groups) >= KEPT:
                    self._groups.popitem(last=False)
                self._groups[group] = table.column(0)
            self._groups.move_to_end(group)
            column = self._groups[group]
        return column[row - self._starts[group]].as_py()

    def _open(self) -> Any:
        return self._read(lambda file: file)

    def _read(self, what: Callable[[Any], Any]) -> Any:
        parquet = _library()
        try:
            return what(parquet.ParquetFile(self.path))
        except FileNotFoundError:
            raise FileNotFoundError(f"{self.path}: there is no such file") from None
        except (OSError, ValueError, KeyError) as error:  # pyarrow's ArrowInvalid is a ValueError
            reason = " ".join(str(error).split())
            raise DataError(f"{self.path}: cannot be read as parquet: {reason}; download or write it again") from error


def _library() -> Any:
    try:
        from pyarrow import parquet
    except ImportError:
        raise ModuleNotFoundError(
            'reading parquet needs pyarrow: pip install "miniclip[parquet]"', name="pyarrow"
        ) from None
    return parquet


def open_parquet(
    path: Path, image: str | None = None, caption: str | Sequence[str] | None = None
) -> tuple[ParquetFile, Columns]:
    """Open a parquet file and say which columns are which.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is damaged, or a column is not there.
        ModuleNotFoundError: pyarrow is not installed.
    """
    file = ParquetFile(path)
    columns = choose(path, file.columns, image, caption)
    file.pictures_from(columns.image)
    return file, columns


def read_parquet(file: ParquetFile, columns: Columns, split: str | None = None) -> Iterator[Entry]:
    """The rows: each a picture with a caption, or a list of them.

    Pictures in the file itself have a row each, unless a column such as `filename` or `image_id` names them.
    """
    paths = file.values(columns.image) if file.is_text(columns.image) else None
    captions = [file.values(name) for name in columns.captions]
    names = file.values(columns.name) if columns.name else None
    splits = file.values(columns.split) if columns.split else None
    for row in range(file.rows):
        own = [caption for column in captions for caption in _listed(column[row])]
        said = split if splits is None else splits[row]
        where = f"{file.path}, row {row}"
        if paths is not None:
            yield Entry(where, (paths[row] or "").strip(), own, said)
        else:
            name = f"{file.path.name}/{row}" if names is None or names[row] is None else str(names[row])
            yield Entry(where, name, own, said, ParquetImage(file, row))


def _listed(value: object) -> list[object]:
    return list(value) if isinstance(value, list) else [value]
