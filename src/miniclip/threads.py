"""Threads that end with whoever asked for them: after Ctrl-C or an error, work that has not begun is dropped."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def threads(count: int | None = None) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads, `count` of them or some for each core.

    Leaving the pool's own context would wait for all that was given to it, for minutes where that is a whole data set.
    """
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
