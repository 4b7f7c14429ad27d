"""Listing of a tar file: name, offset and size of each member, read from the headers. Nothing is extracted.

Member names are never used as paths, so absolute names and names with `..` are harmless.
Reference: the ustar and pax formats, POSIX.1-2017, "pax"; parsed by the standard library's tarfile.
"""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from miniclip.utils.files import open_regular

COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
MAX_HEADER_BYTES = 1 << 16  # limit for a long name or a pax header; a path has at most 4,096 bytes


class Member(NamedTuple):
    """Member of a tar file.

    Attributes:
        name: its name in the tar.
        offset: of its content, in bytes.
        size: of its content, in bytes.
        problem: the reason why the content cannot be read from there, or None.
    """

    name: str
    offset: int
    size: int
    problem: str | None


class TarListing(NamedTuple):
    """Members of a tar file.

    Attributes:
        members: complete members without folders, in the order of the file.
        problem: the reason why the listing ends early, or None.
    """

    members: list[Member]
    problem: str | None


class _HeaderError(Exception):
    """A header announces more bytes than a header has."""


class _Headers:
    """Tar file of which only headers are read: tarfile allocates what a long name or a pax header announces."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self._file = file.seek, file.tell, file

    def read(self, size: int) -> bytes:
        """Read at most `MAX_HEADER_BYTES`."""
        if size > MAX_HEADER_BYTES:
            raise _HeaderError(f"of {size:,} bytes")
        return self._file.read(size)


def list_members(path: Path, most: int | None = None) -> TarListing:
    """List the members of a tar file, up to the first damage, or the first ones if `most` limits their number.

    Raises:
        OSError: the file cannot be read.
    """
    size = path.stat().st_size
    with open_regular(path) as file:
        start = file.read(8)
        compression = next((name for magic, name in COMPRESSED.items() if start.startswith(magic)), None)
        if compression:
            return TarListing([], f"is compressed with {compression}, so its members have no offsets; decompress it")
        file.seek(0)
        members: list[Member] = []
        try:
            problem, end = _read_headers(file, size, members, most)
        except _HeaderError as error:
            problem, end = f"has a damaged header ({error}){_after(members)}", 0
        except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
            message = " ".join(str(error).split()) or type(error).__name__
            problem, end = f"is cut short{_after(members)}" if members else f"is not a tar file ({message})", 0
        except RecursionError:  # thousands of headers for one member
            problem, end = f"has a damaged header{_after(members)}", 0
        if most is not None:
            return TarListing(members, problem)
        return TarListing(members, problem or _end_problem(file, end, members))


def _read_headers(file: BinaryIO, size: int, members: list[Member], most: int | None) -> tuple[str | None, int]:
    """Add all complete members to the list, or the first ones; return the problem and the offset after the last."""
    # backslashreplace keeps names distinct that "replace" would make equal
    headers: Any = _Headers(file)
    with tarfile.open(fileobj=headers, mode="r:", encoding="utf-8", errors="backslashreplace") as tar:
        last = -1
        while (most is None or len(members) < most) and (header := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # else the members of a large tar are in memory twice
            if header.offset <= last or header.size < 0:
                return f"has a damaged header at byte {header.offset:,}", 0
            last = header.offset
            if header.isreg() and header.offset_data + header.size > size:
                return f"is cut short in {header.name}", 0
            if not header.isdir():
                members.append(Member(header.name, header.offset_data, header.size, _member_problem(header)))
        return None, tar.offset


def _end_problem(file: BinaryIO, end: int, members: list[Member]) -> str | None:
    """Check the block of zeros that ends a tar file; tarfile takes any damaged header for the end."""
    file.seek(end)
    block = file.read(tarfile.BLOCKSIZE)
    if block == bytes(tarfile.BLOCKSIZE):
        return None
    problem = "has a damaged header" if len(block) == tarfile.BLOCKSIZE else "is cut short"
    return problem + _after(members)


def _after(members: list[Member]) -> str:
    return f" after {members[-1].name}" if members else ""


def _member_problem(header: tarfile.TarInfo) -> str | None:
    if header.issparse():
        return "is stored as a sparse file"
    if header.issym() or header.islnk():
        return f"is a link to {header.linkname}"
    return None if header.isreg() else "is not a regular file"
