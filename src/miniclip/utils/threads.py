"""Thread pool that drops pending work after an error or Ctrl-C."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def thread_pool(max_workers: int | None = None) -> Iterator[ThreadPoolExecutor]:
    """Open a thread pool that cancels pending work when the context ends.

    The context of ThreadPoolExecutor waits for all submitted work, which takes minutes for a whole dataset.

    Args:
        max_workers: number of threads; None lets ThreadPoolExecutor choose.
    """
    pool = ThreadPoolExecutor(max_workers)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
