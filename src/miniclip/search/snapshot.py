"""Snapshot of an index for readers: items and vectors of one moment, which later updates do not change.

Letters: N items, R rows of the vectors, E embedding. Several items share a row if their files are equal.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from miniclip.errors import DataError
from miniclip.search.database import DATABASE, FORMAT, copy_database, database_errors

ATTEMPTS = 5  # a writer can replace the vectors between the two reads, but not often
MAX_PARAMETERS = 500  # parameters in one SQL statement
BYTES = 2  # bytes of a float16
COLUMNS = "id, name, row, size, mtime_ns, lower(hex(sha256)), width, height"


@dataclass(frozen=True)
class Item:
    """One image of an index.

    Attributes:
        id: number of the item; it is not used again after a removal.
        name: path relative to the indexed folder, with forward slashes; or the name in an archive or a table.
        row: row of its vector.
        size: bytes of the file.
        mtime_ns: time of the last change of the file, in nanoseconds since 1970; 0 if it has none.
        sha256: digest of the file, as hexadecimal digits.
        width: of the upright image, in pixels.
        height: likewise.
    """

    id: int
    name: str
    row: int
    size: int
    mtime_ns: int
    sha256: str
    width: int
    height: int


@dataclass(frozen=True)
class Hit:
    """One result of a search.

    Attributes:
        path: absolute path of the file, or name in an archive or a table.
        score: cosine similarity with the query.
        item: the image in the index.
    """

    path: str
    score: float
    item: Item


class Snapshot:
    """Items and vectors of an index at one moment, in the order of their names. Threads may share it.

    Args:
        path: the index's directory.

    Attributes:
        ids: (N,) int64, the items' numbers.
        rows: (N,) int64, the row of each item.
        vectors: (R, E) float16, mapped from the file; rows that no item refers to are holes.
        settings: the settings of the index.

    Raises:
        FileNotFoundError: the path is not an index.
        DataError: the index is damaged, or of another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        require_index(path)
        for attempt in range(ATTEMPTS):
            self._database = copy_database(path / DATABASE)
            self.settings = read_settings(self._database, path)
            try:
                self.vectors = _map_vectors(path, self.settings)
                break
            except FileNotFoundError:
                if attempt == ATTEMPTS - 1:
                    raise
        self._lock = threading.Lock()
        pairs = np.array(self._fetch("SELECT id, row FROM items ORDER BY name"), np.int64).reshape(-1, 2)
        self.ids: npt.NDArray[np.int64] = np.ascontiguousarray(pairs[:, 0])
        self.rows: npt.NDArray[np.int64] = np.ascontiguousarray(pairs[:, 1])
        if len(self.rows) and not 0 <= self.rows.min() <= self.rows.max() < len(self.vectors):
            raise DataError(f"{path}: an item refers to a row that the vectors lack: delete {path} and build it again")

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def names(self) -> list[str]:
        """Names of the items, in order."""
        return [name for (name,) in self._fetch("SELECT name FROM items ORDER BY name")]

    def items(self, positions: Iterable[int] | None = None) -> list[Item]:
        """Return items by their positions, 0..N-1; None: all of them."""
        if positions is None:
            return [Item(*values) for values in self._fetch(f"SELECT {COLUMNS} FROM items ORDER BY name")]
        ids = [int(self.ids[position]) for position in positions]
        items = {item.id: item for item in self._items_with("id", list(dict.fromkeys(ids)))}
        return [items[number] for number in ids]

    def items_of_rows(self, rows: Iterable[int]) -> dict[int, list[Item]]:
        """Return the items of some rows, by row; the items of a row are in the order of their names."""
        numbers = [int(row) for row in rows]
        found: dict[int, list[Item]] = {row: [] for row in numbers}
        for item in self._items_with("row", list(found)):
            found[item.row].append(item)
        return found

    def where(self, condition: str, parameters: Sequence[Any] = ()) -> npt.NDArray[np.int64]:
        """Return the positions of the items that an SQL condition on the table `items` selects, in order."""
        ids = self._fetch(f"SELECT id FROM items WHERE {condition} ORDER BY name", parameters)
        order = np.argsort(self.ids)
        return order[np.searchsorted(self.ids[order], np.array(ids, np.int64).reshape(-1))]

    def unreadable(self) -> dict[str, str]:
        """Return the names of the files that could not be read, with the reason."""
        return dict(self._fetch("SELECT name, reason FROM failures ORDER BY name"))

    def close(self) -> None:
        """Release the copy of the database."""
        with self._lock:
            self._database.close()

    def _items_with(self, column: str, values: list[int]) -> list[Item]:
        found: list[Item] = []
        for start in range(0, len(values), MAX_PARAMETERS):
            part = values[start : start + MAX_PARAMETERS]
            marks = ", ".join("?" * len(part))
            query = f"SELECT {COLUMNS} FROM items WHERE {column} IN ({marks}) ORDER BY name"
            found += [Item(*values) for values in self._fetch(query, part)]
        return found

    def _fetch(self, query: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._lock, database_errors(self.path / DATABASE):
            return self._database.execute(query, parameters).fetchall()


def require_index(path: Path) -> None:
    """Raise FileNotFoundError unless a path is an index's directory."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such index; build one with `miniclip index MODEL FOLDER -o {path}`")
    if not (path / DATABASE).is_file():
        kind = "a directory without" if path.is_dir() else "a file; expected a directory with"
        raise FileNotFoundError(f"{path}: is not an index: {kind} {DATABASE}")


def read_settings(database: sqlite3.Connection, path: Path) -> dict[str, str]:
    """Return the settings of an index.

    Raises:
        DataError: the database is damaged, or of another version.
    """
    with database_errors(path / DATABASE):
        settings: dict[str, str] = dict(database.execute("SELECT key, value FROM settings").fetchall())
    if settings.get("format") != FORMAT:
        found = settings.get("format", "no format")
        raise DataError(f"{path}: found {found!r}, expected {FORMAT!r}: another version wrote it; build it again")
    return settings


def vectors_path(path: Path, settings: dict[str, str]) -> Path:
    """Return the path of the vectors."""
    return path / f"vectors-{int(settings['generation'])}.f16"


def require_length(path: Path, settings: dict[str, str]) -> None:
    """Check that the file of the vectors has all rows of the index.

    Raises:
        FileNotFoundError: it is missing.
        DataError: it is shorter.
    """
    file = vectors_path(path, settings)
    found, expected = file.stat().st_size, int(settings["rows"]) * int(settings["embed_dim"]) * BYTES
    if found < expected:
        raise DataError(f"{file}: found {found:,} bytes, expected {expected:,}: delete {path} and build it again")


def _map_vectors(path: Path, settings: dict[str, str]) -> npt.NDArray[np.float16]:
    """Map the vectors of an index, (R, E) float16, for reading."""
    require_length(path, settings)
    shape = (int(settings["rows"]), int(settings["embed_dim"]))
    if not shape[0]:
        return np.zeros(shape, np.float16)
    return np.memmap(vectors_path(path, settings), np.float16, "r", shape=shape)
