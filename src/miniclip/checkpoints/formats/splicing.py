"""Parts of a file as one piece of memory, without a copy: their pages are mapped one after the other.

Three matrices of a file make one of ours (queries, keys and values, which transformers keeps apart). To copy them is to
ask the system for new memory, which takes longer than all the rest of opening a model. Pages can be mapped in any
order, so where each part starts at the byte of a page at which the one before it ends, none is moved: only the page in
which two parts meet is written, to hold the end of one and the start of the other. So it is where the rows of a matrix
are whole pages, as in float32 at a width of 1024, ViT-L's; any other parts have to be copied.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import sys
from collections.abc import Callable, Sequence
from io import FileIO

PAGE = mmap.PAGESIZE
MAP_FIXED = 0x10  # in the place that is asked for; Linux's number, which the module mmap has no name for


def spliced(file: FileIO, spans: Sequence[tuple[int, int]]) -> tuple[mmap.mmap, int] | None:
    """Map parts of a file, one after the other.

    The map is private: what is written to it stays in this process.

    Args:
        file: open for reading; it may be closed afterwards.
        spans: each part's first byte and the one behind its last; none of them empty.

    Returns:
        The map, and the byte of it at which the first part starts. None where the parts do not meet in a page, or the
        system has no such maps.
    """
    begin = spans[0][0] % PAGE
    places = [begin]
    for start, stop in spans:
        if (start - places[-1]) % PAGE:
            return None
        places.append(places[-1] + stop - start)
    map_at = _mmap()
    if map_at is None:
        return None
    whole = mmap.mmap(-1, places.pop(), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # unmaps all of it in the end
    address = ctypes.addressof(ctypes.c_char.from_buffer(whole))
    for place, (start, stop) in zip(places, spans, strict=True):
        shared = place % PAGE  # bytes of the first page that are the part before's
        first = place - shared
        end_before = whole[first:place]
        if not map_at(address + first, shared + stop - start, file.fileno(), start - shared):
            return None
        if place != begin:
            whole[first:place] = end_before
    return whole, begin


@functools.cache
def _mmap() -> Callable[[int, int, int, int], bool] | None:
    """The system's mmap, as (address, length, file, offset): the module of that name lets nobody choose the place."""
    if sys.platform != "linux" or ctypes.sizeof(ctypes.c_long) != 8:  # else off_t might be another type
        return None
    call = ctypes.CDLL(None).mmap
    call.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    call.restype = ctypes.c_void_p
    modes = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | MAP_FIXED
    return lambda address, length, file, offset: call(address, length, *modes, file, offset) == address
