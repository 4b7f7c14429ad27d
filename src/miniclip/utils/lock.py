"""Exclusive lock on a directory, so that two processes do not overwrite each other's files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_locked: set[int] = set()  # file descriptors of the locked directories


@contextmanager
def lock_directory(path: Path) -> Iterator[None]:
    """Lock a directory against other processes and other callers in this one; create it if missing.

    The lock is flock on the directory itself. It leaves no file behind and ends with the process, even if the process
    is killed. Systems and file systems without flock are not locked.

    Raises:
        BlockingIOError: another process holds the lock.
    """
    path.mkdir(parents=True, exist_ok=True)
    descriptor = _lock(path)
    try:
        yield
    finally:
        if descriptor is not None:
            _locked.discard(descriptor)
            os.close(descriptor)


def _lock(path: Path) -> int | None:
    """Return the descriptor of a directory after locking it, or None without support for flock."""
    try:
        import fcntl

        descriptor = os.open(path, os.O_RDONLY)
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise BlockingIOError(
            f"{path}: another process is writing there; wait for it, end it, or choose another directory"
        ) from None
    except OSError:
        os.close(descriptor)
        return None
    _locked.add(descriptor)
    return descriptor


def _unlock_in_child() -> None:
    """Close the inherited descriptors in a forked child, which could outlive its parent and keep the lock."""
    for descriptor in _locked:
        with suppress(OSError):
            os.close(descriptor)
    _locked.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock_in_child)
