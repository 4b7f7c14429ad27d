"""Threads that end with whoever asked for them: after Ctrl-C or an error, work that has not begun is dropped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

from miniclip.runtime import distributed


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


def cores() -> int:
    """Those that this process may use, shared out to the ranks on the machine."""
    with suppress(AttributeError):  # where the system tells which: containers and schedulers give fewer than all
        return max(1, len(os.sched_getaffinity(0)) // distributed.local_world_size())
    return max(1, (os.cpu_count() or 1) // distributed.local_world_size())
