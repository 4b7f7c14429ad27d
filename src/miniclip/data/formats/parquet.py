"""Parquet files: captions are read at once, images from their row groups on request.

An image is a path, the bytes of a file, or the struct of Hugging Face's datasets: {"bytes": …, "path": …}. Row groups
are read whole and the last ones are kept, so reading in order is fast. For random access, build an image cache.
"""

from __future__ import annotations

import json
import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from miniclip.data.decoding import read_encoded
from miniclip.data.formats.cells import name_labels
from miniclip.data.formats.columns import ColumnNames, choose_columns, read_columns, warn_of_other_captions
from miniclip.data.formats.rows import ImageRows
from miniclip.data.skipping import SkipLog
from miniclip.errors import DataError, UnreadableError
from miniclip.utils.files import open_regular

PYARROW_ERRORS = (OSError, ValueError, TypeError, LookupError, ArithmeticError, NotImplementedError, MemoryError)
MAX_ROW_GROUPS = 2  # per file, kept in the memory of each process
BATCH_ROWS = 4096  # rows at a time, if a whole column is read
MAX_UNCHECKED_BYTES = 1 << 26  # a decompression bomb of this size does no harm
MAX_ROW_BYTES = 1 << 16  # limit for the mean of captions, names and splits
MAX_EXPANSION = 20  # limit for images, which hardly compress: bytes in memory for each byte of the file
MAX_TEXT_EXPANSION = 1_000  # limit for the other columns
MAX_UNCHECKED_ROWS = 1 << 20  # more rows than this have at least a byte each


class ParquetImage:
    """Image in a row of a parquet file."""

    def __init__(self, file: ParquetFile, row: int) -> None:
        self.file, self.row = file, row

    def __str__(self) -> str:
        return f"{self.file.path}, row {self.row}"

    def read(self) -> bytes:
        """Return the encoded image.

        Raises:
            DataError: the row has no image, or the file cannot be read.
        """
        cell: Any = self.file.image_cell(self.row)
        path: Any = None
        if isinstance(cell, dict):
            cell, path = cell.get("bytes"), cell.get("path")
        if cell is None and path and isinstance(path, str):
            try:
                return read_encoded(self.file.path.parent / path)
            except OSError as error:
                reason = error.strerror or str(error).rpartition(": ")[2]
                raise UnreadableError(str(self), f"the path {path!r} cannot be read: {reason}; add the file") from error
        if isinstance(cell, bytes):
            return cell
        if cell is not None:
            raise UnreadableError(str(self), f"holds a {type(cell).__name__}; expected the bytes of an image or a path")
        raise UnreadableError(str(self), "holds no image, neither bytes nor a path; remove the row")


class ParquetFile:
    """Columns of a parquet file, and single cells of its image column. It can be pickled for worker processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.image_column = ""
        self._groups: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()
        self._process = os.getpid()
        file = self._open()
        self.header: list[str] = list(file.schema_arrow.names)
        self.label_names = _read_label_names(file.schema_arrow.metadata)
        self._starts: list[int] = []  # first row of each row group
        self._length = 0
        for group in range(file.metadata.num_row_groups):
            self._starts.append(self._length)
            self._length += file.metadata.row_group(group).num_rows
        if not 0 <= self._length <= max(MAX_UNCHECKED_ROWS, path.stat().st_size):
            size = path.stat().st_size
            raise DataError(f"{path}: has {self._length:,} rows in {size:,} bytes; download or write it again")

    def __len__(self) -> int:
        return self._length

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_groups": OrderedDict(), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def is_text(self, column: str) -> bool:
        """Return whether a column holds text."""
        from pyarrow import types

        kind = self._open().schema_arrow.field(column).type
        kind = kind.value_type if types.is_dictionary(kind) else kind
        return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))

    def values(self, column: str) -> list[Any]:
        """Read all values of a column. Class labels of Hugging Face's datasets are given by their names."""
        return list(self.stream(column))

    def stream(self, column: str) -> Iterator[Any]:
        """Yield the values of a column, read in parts, so that a small file cannot fill the memory.

        Class labels of Hugging Face's datasets are given by their names.
        """
        names, place = self.label_names.get(column), f" in the column {column!r}"
        file = self._read(lambda file: file, place)
        count, allowed = 0, MAX_UNCHECKED_BYTES + MAX_TEXT_EXPANSION * self.path.stat().st_size
        with self._readable(place):
            self._require_sizes(file)
            for batch in file.iter_batches(BATCH_ROWS, columns=[column]):
                allowed -= batch.nbytes
                if allowed < 0 or batch.nbytes > MAX_UNCHECKED_BYTES + MAX_ROW_BYTES * batch.num_rows:
                    raise ValueError("it is much larger than text, or than its file")
                cells = batch.column(0).to_pylist()
                count += len(cells)
                yield from cells if names is None else (name_labels(cell, names) for cell in cells)
            if count != len(self):
                raise ValueError(f"it has {count:,} values, expected {len(self):,}")

    def _require_sizes(self, file: Any) -> None:
        for group in range(file.metadata.num_row_groups):
            self._require_size(file, group)

    def _require_size(self, file: Any, group: int) -> None:
        """Check how large a row group will be, which is in the file's metadata.

        The metadata of a column has its own size. If it is damaged, pyarrow ends the process when that is read.

        Raises:
            ValueError: it is larger than the limit.
        """
        size, rows = file.metadata.row_group(group).total_byte_size, file.metadata.row_group(group).num_rows
        limit = MAX_UNCHECKED_BYTES + MAX_ROW_BYTES * rows + MAX_EXPANSION * self.path.stat().st_size
        if not 0 <= size <= limit:
            raise ValueError(f"a row group has {size:,} bytes, more than {limit:,}")

    def first_values(self, column: str, count: int) -> list[Any]:
        """Read the first values of a column."""

        def read(file: Any) -> list[Any]:
            self._require_sizes(file)
            batches = islice(file.iter_batches(count, columns=[column]), 1)
            return [value for batch in batches for value in batch.column(0).to_pylist()]

        values: list[Any] = self._read(read, f" in the column {column!r}")
        return values

    def image(self, row: int) -> ParquetImage:
        """Return the image of a row, without reading it."""
        return ParquetImage(self, row)

    def row_name(self, row: int) -> str:
        """Return the name of an image without a name of its own."""
        return f"{self.path.name}/{row}"

    def image_cell(self, row: int) -> Any:
        """Read the image column of a row."""
        group = bisect_right(self._starts, row) - 1
        if self._process != os.getpid():  # after a fork, another thread may hold the lock for ever
            self._lock, self._process = threading.Lock(), os.getpid()
        with self._lock:
            if group not in self._groups:
                table = self._read(lambda file: self._read_images(file, group))
                while len(self._groups) >= MAX_ROW_GROUPS:
                    self._groups.popitem(last=False)
                self._groups[group] = table.column(0)
            self._groups.move_to_end(group)
            column = self._groups[group]
        with self._readable(f" in row {row}"):
            return column[row - self._starts[group]].as_py()

    def _read_images(self, file: Any, group: int) -> Any:
        self._require_size(file, group)
        return file.read_row_group(group, columns=[self.image_column])

    def _open(self) -> Any:
        return self._read(lambda file: file)

    def _read(self, read: Callable[[Any], Any], place: str = "") -> Any:
        parquet = _import_parquet()
        open_regular(self.path).close()  # pyarrow would wait for the writer of a pipe
        with self._readable(place):
            return read(parquet.ParquetFile(self.path))

    @contextmanager
    def _readable(self, place: str = "") -> Iterator[None]:
        """Turn the errors of pyarrow, and of values that Python has no type for, into a `DataError`."""
        try:
            yield
        except DataError:
            raise
        except PYARROW_ERRORS as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(
                f"{self.path}: cannot be read as parquet{place}: {reason}; download or write it again"
            ) from error


def _read_label_names(metadata: dict[bytes, bytes] | None) -> dict[str, list[str]]:
    """Return the names of the class labels of each column, from the features that Hugging Face's datasets write."""
    try:
        features = json.loads((metadata or {}).get(b"huggingface", b"{}"))["info"]["features"].items()
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}
    names = {}
    for column, feature in features:
        while isinstance(feature, list | dict) and (isinstance(feature, list) or "feature" in feature):
            feature = next(iter(feature), None) if isinstance(feature, list) else feature["feature"]
        if (
            isinstance(feature, dict)
            and feature.get("_type") == "ClassLabel"
            and isinstance(feature.get("names"), list)
        ):
            names[column] = [str(name) for name in feature["names"]]
    return names


def _import_parquet() -> Any:
    try:
        from pyarrow import parquet
    except ImportError:
        raise ModuleNotFoundError(
            'reading parquet needs pyarrow: pip install "miniclip[parquet]"', name="pyarrow"
        ) from None
    return parquet


def read_parquet(path: Path, skip_log: SkipLog, names: ColumnNames, split: str | None = None) -> ImageRows:
    """Read a parquet file.

    Args:
        path: the file.
        skip_log: receives the rows that cannot be used.
        names: columns that the user chose.
        split: the split of all rows, without a column of splits.

    Raises:
        FileNotFoundError: the file does not exist.
        DataError: the file is damaged, or a column is missing.
        ModuleNotFoundError: pyarrow is not installed.
    """
    file = ParquetFile(path)
    columns = choose_columns(path, file.header, names)
    warn_of_other_captions(path, file.header, columns, names)
    file.image_column = columns.image
    has_status = "status" in file.header and not file.is_text(columns.image)
    rows = read_columns(file, columns, skip_log, split, _not_downloaded(file) if has_status else frozenset())
    return ImageRows(path, rows, f"{path.name}, {columns}", exact_split=columns.split is not None)


def _not_downloaded(file: ParquetFile) -> frozenset[int]:
    """Return the rows of the images that img2dataset could not download: it writes them without an image."""
    failed = {"failed_to_download", "failed_to_resize"}
    return frozenset(row for row, status in enumerate(file.values("status")) if status in failed)
