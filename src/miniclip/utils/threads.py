"""Thread pool that drops pending work after an error or Ctrl-C, and the number of CPU cores."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

from miniclip.runtime import distributed


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


def available_cores() -> int:
    """Return the number of CPU cores of this process: its share among the ranks of the machine."""
    with suppress(AttributeError):  # Linux only; containers and schedulers grant fewer cores than the machine has
        return max(1, len(os.sched_getaffinity(0)) // distributed.local_world_size())
    return max(1, (os.cpu_count() or 1) // distributed.local_world_size())
