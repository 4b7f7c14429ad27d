"""SQLite file of an index: its tables, its connections, and its errors as those of the library.

The journal is SQLite's rollback journal, and not the write-ahead log (WAL). One file is then the whole database, and a
reader needs no permission to write, so that an index on a read-only disk can be searched.
"""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from miniclip.errors import DataError

DATABASE = "index.sqlite"
FORMAT = "miniclip index 1"
MAX_INTEGER = 2**63 - 1  # SQLite's largest integer
BUSY_SECONDS = 30.0  # how long a reader waits for a commit, and a commit for readers that copy the database

SCHEMA = """
CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE items (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used again after a removal
    name TEXT NOT NULL UNIQUE,
    row INTEGER NOT NULL,        -- of the vectors; equal files share one
    size INTEGER NOT NULL,       -- bytes
    mtime_ns INTEGER NOT NULL,   -- time of the last change
    sha256 BLOB NOT NULL,        -- of the file
    width INTEGER NOT NULL,      -- pixels, upright
    height INTEGER NOT NULL,
    certain INTEGER NOT NULL,    -- 0: the file changed too recently for its time to identify its content
    added INTEGER NOT NULL       -- 1: by `Index.add`, outside of the source
);
CREATE INDEX items_row ON items (row);
CREATE INDEX items_sha256 ON items (sha256);
CREATE TABLE failures (
    name TEXT PRIMARY KEY,
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    certain INTEGER NOT NULL,
    reason TEXT NOT NULL
);
"""


def encode_name(name: str) -> bytes:
    """Return a name as bytes, for `CAST(? AS TEXT)`; the names of files need not be UTF-8."""
    return name.encode("utf-8", "surrogateescape")


def decode_name(name: bytes) -> str:
    """Return the name of a file from the bytes of a column."""
    return name.decode("utf-8", "surrogateescape")


def create_database(path: Path, settings: dict[str, str]) -> None:
    """Create a database with its settings and without items, in one transaction."""
    with database_errors(path), closing(_connect(f"{path.as_uri()}?mode=rwc")) as connection:
        connection.executescript(f"BEGIN IMMEDIATE; {SCHEMA}")
        rows = ((key, encode_name(value)) for key, value in settings.items())
        connection.executemany("INSERT INTO settings VALUES (?, CAST(? AS TEXT))", rows)
        connection.execute("COMMIT")


def connect_to_write(path: Path) -> sqlite3.Connection:
    """Return a connection for writing; each commit is on the disk when it returns."""
    with database_errors(path):
        connection = _connect(f"{path.as_uri()}?mode=rw")
        connection.execute("PRAGMA synchronous = EXTRA")  # also flushes the directory after the journal's deletion
        connection.execute("PRAGMA cache_spill = OFF")  # a spill would lock readers out until the commit
        return connection


def copy_database(path: Path) -> sqlite3.Connection:
    """Return a copy of a database in memory, which any thread may use, one at a time.

    The copy holds no lock, and later changes of the file do not change it.
    """
    with database_errors(path):
        copy = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        copy.text_factory = decode_name
        for mode in ("ro", "rw"):
            try:
                with closing(_connect(f"{path.as_uri()}?mode={mode}")) as source:
                    source.backup(copy)
                break
            except sqlite3.OperationalError as error:  # a killed commit is rolled back first, which writes
                if mode == "rw" or error.sqlite_errorcode != sqlite3.SQLITE_READONLY_ROLLBACK:
                    raise
        return copy


def _connect(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
    connection.text_factory = decode_name
    return connection


@contextmanager
def database_errors(path: Path) -> Iterator[None]:
    """Context that raises SQLite's errors as those of the library.

    Raises:
        OSError: the disk is full, or the file cannot be opened or written.
        DataError: the file is damaged.
        ValueError: the index was closed.
    """
    try:
        yield
    except sqlite3.Error as error:
        if isinstance(error, sqlite3.ProgrammingError) and "closed" in str(error):
            raise ValueError(f"{path.parent}: the index was closed; open it again") from error
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            raise OSError(errno.ENOSPC, "No space left on device", str(path)) from error
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            raise PermissionError(
                f"{path}: cannot be opened ({error}): check its permissions and those of its folder; after an "
                "interrupted update, open it once where this user may write"
            ) from error
        if code == sqlite3.SQLITE_BUSY:
            raise BlockingIOError(f"{path}: another process is writing there; wait for it, or end it") from error
        if code == sqlite3.SQLITE_IOERR:
            raise OSError(errno.EIO, "Input/output error", str(path)) from error
        raise DataError(f"{path}: is damaged ({error}): delete {path.parent} and build it again") from error
