"""A tar file as a table: the name, place and size of each member, read from its headers alone, nothing extracted.

A name is a name here, never a path: one that is absolute or climbs is no danger, since no file is made from it.
Reference: the ustar and pax formats, POSIX.1-2017, "pax"; read by the standard library's tarfile.
"""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import NamedTuple

BLOCK = tarfile.BLOCKSIZE
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class Member(NamedTuple):
    """A member of a tar file."""

    name: str
    offset: int  # of its content, in bytes
    size: int
    wrong: str | None  # why its content cannot be read from there


class Table(NamedTuple):
    """The members of a tar file."""

    members: list[Member]  # that are whole, without folders, in the file's order
    wrong: str | None  # why there are no more, of a file that does not end as it should


def read_table(path: Path) -> Table:
    """List what is in a tar file, up to where it is damaged.

    Raises:
        OSError: the file cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        packing = next((name for mark, name in COMPRESSED.items() if start.startswith(mark)), None)
        if packing:
            return Table([], f"is packed with {packing}, so that nothing in it can be read by its place; unpack it")
        file.seek(0)
        members: list[Member] = []
        try:
            # not "replace": two names must not become one
            with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="backslashreplace") as tar:
                at = -1
                while (entry := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # or a tar of a million members is kept twice
                    if entry.offset <= at or entry.size < 0:
                        return Table(members, f"has a damaged header at byte {entry.offset:,}")
                    at = entry.offset
                    if entry.isreg() and entry.offset_data + entry.size > size:
                        return Table(members, f"is cut short in {entry.name}")
                    if not entry.isdir():
                        members.append(Member(entry.name, entry.offset_data, entry.size, _wrong_with(entry)))
                end = tar.offset
        except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
            where = f"cut short after {members[-1].name}" if members else f"no tar file ({_one_line(error)})"
            return Table(members, f"is {where}")
        file.seek(end)
        mark = file.read(BLOCK)
    if mark == bytes(BLOCK):
        return Table(members, None)
    after = f" after {members[-1].name}" if members else ""
    return Table(members, f"has a damaged header{after}" if len(mark) == BLOCK else f"is cut short{after}")


def _wrong_with(entry: tarfile.TarInfo) -> str | None:
    if entry.issparse():
        return "is stored as a sparse file"
    if entry.issym() or entry.islnk():
        return f"is a link to {entry.linkname}"
    return None if entry.isreg() else "is no regular file"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
