"""A folder that one process writes in at a time: two that take up the same run would overwrite each other's files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_held: set[int] = set()  # descriptors of folders


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold a folder, which is made where it is missing; other processes, and other holders here, are refused.

    It is the system's lock of the folder itself (flock): no file is left behind, and it ends with the process, however
    that ends. Where the system or the file system has no such locks, nothing is held and nobody is refused.

    Raises:
        BlockingIOError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = _lock(folder)
    try:
        yield
    finally:
        if descriptor is not None:
            _held.discard(descriptor)
            os.close(descriptor)


def _lock(folder: Path) -> int | None:
    """Open a folder and lock it; None where that cannot be done."""
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise BlockingIOError(
            f"{folder}: another process is writing there; wait for it, end it, or name another folder"
        ) from None
    except OSError:
        os.close(descriptor)
        return None
    _held.add(descriptor)
    return descriptor


def _let_go() -> None:
    """In a child that was forked: what it holds a copy of would else stay locked when its parent is gone."""
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
