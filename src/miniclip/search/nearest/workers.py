"""Threads that each compute with one thread of torch.

Threads of OpenMP wait for each other at the end of every product. On a processor with other work, that doubles the time
of a search and more; threads that take block after block do not wait.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

In = TypeVar("In")
Out = TypeVar("Out")

_lock = threading.Lock()
_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}  # by process, because a fork copies no threads, and by size


def in_threads(function: Callable[[In], Out], items: Iterable[In]) -> Iterator[Out]:
    """Return the results of a function in order, computed by as many threads as torch uses.

    Args:
        function: releases the interpreter lock for most of its time, as torch and numpy do.
        items: its arguments.
    """
    items, count = list(items), torch.get_num_threads()
    if count == 1 or len(items) < 2:
        return map(function, items)
    return _pool(count).map(function, items)


def _pool(count: int) -> ThreadPoolExecutor:
    with _lock:
        key = os.getpid(), count
        if key not in _pools:
            started = threading.Barrier(count + 1)
            pool = ThreadPoolExecutor(count, "miniclip-search", initializer=_start, initargs=(started,))
            for _ in range(count):
                pool.submit(int)
            started.wait()
            torch.set_num_threads(count)  # the setting of the other threads, which `_start` changed
            _pools[key] = pool
        return _pools[key]


def _start(started: threading.Barrier) -> None:
    """Limit this thread to one thread of torch."""
    torch.set_num_threads(1)
    started.wait()
