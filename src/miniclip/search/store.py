"""Store of an index: the one writer of its SQLite file and its vectors.

An index is a directory: `index.sqlite` has the items and the settings, `vectors-<generation>.f16` the embeddings as
rows of float16. A commit first appends the new rows and flushes them, then commits the transaction that refers to
them. A process killed at any moment therefore leaves a complete index: rows after the committed count are ignored, and
the next writer cuts them off. Rows without an item are holes, until a compaction writes a file of the next generation.
Letters: N items, R rows, E embedding.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from miniclip.search.database import (
    DATABASE,
    FORMAT,
    MAX_INTEGER,
    connect_to_write,
    create_database,
    database_errors,
    encode_name,
)
from miniclip.search.snapshot import BYTES, Snapshot, read_settings, require_index, require_length, vectors_path
from miniclip.utils.lock import lock_directory

MAX_HOLES = 0.5  # part of the rows; with more, a compaction saves more than it costs
COPY_ROWS = 8192  # rows that a compaction copies at once


class FileState(NamedTuple):
    """State of a file when it was read.

    Attributes:
        size: bytes.
        mtime_ns: time of the last change.
        certain: whether an equal size and time mean an equal content. They do not just after a change, since the
            clock of a file system is coarse.
    """

    size: int
    mtime_ns: int
    certain: bool

    @classmethod
    def of(cls, status: os.stat_result) -> FileState:
        """Return the state of a file that is listed, from its status."""
        return cls(status.st_size, status.st_mtime_ns, True)

    @classmethod
    def find(cls, path: Path) -> FileState | None:
        """Return the state of the file at a path; None if it cannot be reached."""
        try:
            return cls.of(path.stat())
        except OSError:
            return None


class Facts(NamedTuple):
    """Properties of an image that an index keeps besides its vector."""

    state: FileState
    sha256: bytes
    width: int
    height: int


class Store:
    """Index on disk.

    Args:
        path: its directory.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()

    @property
    def exists(self) -> bool:
        """Whether the directory is an index."""
        return (self.path / DATABASE).is_file()

    def create(self, embed_dim: int, settings: dict[str, str]) -> None:
        """Create an index without items. A killed process leaves no part of it that counts as an index.

        Raises:
            FileExistsError: the path is a file, or a directory with other files.
        """
        self.require_free()
        with lock_directory(self.path):
            if self.exists:
                return
            settings = {"format": FORMAT, "embed_dim": str(embed_dim), "rows": "0", "generation": "0", **settings}
            settings["id"] = uuid.uuid4().hex  # tells an index that was deleted and built again from the earlier one
            vectors_path(self.path, settings).write_bytes(b"")
            new = self.path / f"{DATABASE}.new"
            for rest in self.path.glob(f"{DATABASE}*"):
                rest.unlink()
            create_database(new, settings)
            new.replace(self.path / DATABASE)

    def require_free(self) -> None:
        """Check that an index can be created at the path.

        Raises:
            FileExistsError: it is a file, or a directory with other files.
        """
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise FileExistsError(f"{self.path}: is a file; an index is a directory: choose another name")
        others = [file.name for file in self.path.iterdir() if not file.name.startswith((DATABASE, "vectors-"))]
        if others:
            raise FileExistsError(f"{self.path}: is not an index, and holds {min(others)!r}: choose another directory")

    def snapshot(self) -> Snapshot:
        """Return the items and vectors of this moment."""
        return Snapshot(self.path)

    @contextmanager
    def writing(self) -> Iterator[Writer]:
        """Context of the only writer; an error leaves the index as it was at the last commit.

        Raises:
            BlockingIOError: another process is writing.
            DataError: the index is damaged.
        """
        require_index(self.path)
        with lock_directory(self.path), closing(Writer(self.path)) as writer:
            yield writer


class Writer:
    """Changes of an index, which `commit` writes. Use `Store.writing`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.database = connect_to_write(path / DATABASE)
        try:
            self.settings = read_settings(self.database, path)
            require_length(path, self.settings)
            self.embed_dim, self.rows = int(self.settings["embed_dim"]), int(self.settings["rows"])
            self._delete_other_generations()
            self._vectors: BinaryIO = vectors_path(path, self.settings).open("r+b")
            self._vectors.truncate(self.rows * self.embed_dim * BYTES)
            self._vectors.seek(0, os.SEEK_END)
            self._execute("BEGIN IMMEDIATE")
        except BaseException:
            self.database.close()
            raise

    def append(self, vectors: npt.NDArray[np.float32]) -> int:
        """Append vectors (n, E); return the row of the first."""
        first = self.rows
        self._vectors.write(np.ascontiguousarray(vectors, np.float16).data)
        self.rows += len(vectors)
        return first

    def put(self, name: str, row: int, facts: Facts, added: bool = False) -> None:
        """Add an item, or replace the one of that name, which keeps its number."""
        self._execute(
            "INSERT INTO items (name, row, size, mtime_ns, sha256, width, height, certain, added) "
            "VALUES (CAST(? AS TEXT), ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET row = excluded.row, "
            "size = excluded.size, mtime_ns = excluded.mtime_ns, sha256 = excluded.sha256, width = excluded.width, "
            "height = excluded.height, certain = excluded.certain, added = excluded.added",
            (encode_name(name), row, facts.state.size, _stored(facts.state).mtime_ns, facts.sha256, facts.width,
             facts.height, facts.state.certain, added),
        )  # fmt: skip
        self._execute("DELETE FROM failures WHERE name = CAST(? AS TEXT)", (encode_name(name),))

    def rename(self, name: str, new: str, state: FileState) -> None:
        """Give an item another name, and the state of its file."""
        self._execute(
            "UPDATE items SET name = CAST(? AS TEXT), size = ?, mtime_ns = ?, certain = ? WHERE name = CAST(? AS TEXT)",
            (encode_name(new), *_stored(state), encode_name(name)),
        )
        self._execute("DELETE FROM failures WHERE name = CAST(? AS TEXT)", (encode_name(new),))

    def remove(self, names: Iterable[str]) -> None:
        """Remove items, and the record of failures of these names."""
        for name in names:
            for table in ("items", "failures"):
                self._execute(f"DELETE FROM {table} WHERE name = CAST(? AS TEXT)", (encode_name(name),))

    def fail(self, name: str, state: FileState, reason: str) -> None:
        """Record that a file cannot be read; an item of that name is removed."""
        self.remove([name])
        self._execute(
            "INSERT INTO failures VALUES (CAST(? AS TEXT), ?, ?, ?, CAST(? AS TEXT))",
            (encode_name(name), *_stored(state), encode_name(reason)),
        )

    def set(self, **settings: str) -> None:
        """Change settings."""
        for key, value in settings.items():
            self._execute("INSERT OR REPLACE INTO settings VALUES (?, CAST(? AS TEXT))", (key, encode_name(value)))
        self.settings |= settings

    def query(self, text: str, parameters: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of an SQL query, with the changes that are not committed yet."""
        return self._execute(text, parameters)

    def commit(self) -> None:
        """Write all changes: first the vectors, then the transaction that refers to them."""
        self._vectors.flush()
        os.fsync(self._vectors.fileno())
        self.set(rows=str(self.rows))
        self._execute("COMMIT")
        self._execute("BEGIN IMMEDIATE")

    def compact(self) -> bool:
        """Commit, and write the vectors again without holes if these are too many; return whether it was done.

        A full disk leaves the holes.
        """
        self.commit()
        used = np.array(self.query("SELECT DISTINCT row FROM items ORDER BY row"), np.int64).reshape(-1)
        if self.rows - len(used) <= MAX_HOLES * self.rows:
            return False
        old = vectors_path(self.path, self.settings)
        settings = self.settings | {"generation": str(int(self.settings["generation"]) + 1)}
        new = vectors_path(self.path, settings)
        try:
            self._write_rows(old, new, used)
        except OSError:
            new.unlink(missing_ok=True)
            return False
        with database_errors(self.path / DATABASE):
            self.database.execute("CREATE TEMP TABLE moved (old INTEGER PRIMARY KEY, new INTEGER)")
            pairs = ((int(row), number) for number, row in enumerate(used))
            self.database.executemany("INSERT INTO moved VALUES (?, ?)", pairs)
            self.database.execute("UPDATE items SET row = (SELECT new FROM moved WHERE old = row)")
            self.database.execute("DROP TABLE moved")
        self._vectors.close()
        self._vectors, self.rows = new.open("r+b"), len(used)
        self._vectors.seek(0, os.SEEK_END)
        self.set(generation=settings["generation"])
        self.commit()
        self._delete_other_generations()
        return True

    def _write_rows(self, old: Path, new: Path, rows: npt.NDArray[np.int64]) -> None:
        """Write some rows of a file of vectors to another one."""
        with new.open("wb") as file:
            source = np.memmap(old, np.float16, "r", shape=(self.rows, self.embed_dim))
            for start in range(0, len(rows), COPY_ROWS):
                file.write(np.ascontiguousarray(source[rows[start : start + COPY_ROWS]]).data)
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        """Drop changes without a commit, and close the files."""
        self._vectors.close()
        self.database.close()

    def _delete_other_generations(self) -> None:
        """Delete vectors that the index does not refer to any more; readers that have them open keep them."""
        current = vectors_path(self.path, self.settings)
        for path in self.path.glob("vectors-*.f16"):
            if path != current:
                with suppress(OSError):  # Windows does not delete files that are open
                    path.unlink()

    def _execute(self, text: str, parameters: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        with database_errors(self.path / DATABASE):
            return self.database.execute(text, parameters).fetchall()


def _stored(state: FileState) -> FileState:
    """Return a state with a time that SQLite can store; a file from after 2262 is read at every update."""
    return state._replace(mtime_ns=min(state.mtime_ns, MAX_INTEGER))
