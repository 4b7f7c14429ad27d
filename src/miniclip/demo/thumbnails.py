"""Thumbnails in memory: JPEG files of a bounded number of bytes, made on first use."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from PIL import Image

T = TypeVar("T", bound=Hashable)

QUALITY = 86


class ByteCache:
    """Cache with a bounded number of bytes; those unused for the longest time are removed first.

    Args:
        capacity: bytes of all values.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.size = capacity, 0
        self._values: OrderedDict[Hashable, bytes] = OrderedDict()

    def get(self, key: Hashable) -> bytes | None:
        """Return a value, which then counts as the one used last; None if the cache lacks it."""
        if key in self._values:
            self._values.move_to_end(key)
        return self._values.get(key)

    def put(self, key: Hashable, value: bytes) -> None:
        """Add a value; one larger than the capacity is not kept."""
        self.size -= len(self._values.pop(key, b""))
        if len(value) > self.capacity:
            return
        self._values[key] = value
        self.size += len(value)
        while self.size > self.capacity:
            self.size -= len(self._values.popitem(last=False)[1])

    def __len__(self) -> int:
        return len(self._values)


class Thumbnails(Generic[T]):
    """Images of an index as small JPEG files.

    Args:
        read: function of an item and a side in pixels that returns its RGB image; it may be reduced, if both
            sides keep this number of pixels.
        capacity: bytes in memory.
        workers: threads that decode.
    """

    def __init__(self, read: Callable[[T, int], Image.Image], capacity: int, workers: int = 2) -> None:
        self._read, self._cache, self._lock = read, ByteCache(capacity), threading.Lock()
        self._pending: dict[tuple[T, int], Future[bytes]] = {}
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="miniclip-thumbnails")

    @property
    def pending(self) -> int:
        """Number of thumbnails that are decoded at present, or wait for it."""
        return len(self._pending)

    def get(self, item: T, side: int) -> Future[bytes]:
        """Return the future JPEG file of an item, at most `side` pixels wide and high; callers at once share it.

        The future raises DataError if the image cannot be read.
        """
        key = (item, side)
        with self._lock:
            future: Future[bytes] = Future()
            if (value := self._cache.get(key)) is not None:
                future.set_result(value)
                return future
            if key in self._pending:
                return self._pending[key]
            future.set_running_or_notify_cancel()  # it cannot be cancelled: others may wait for it
            self._pending[key] = future
        self._pool.submit(self._make, key, future)
        return future

    def close(self) -> None:
        """End the threads; thumbnails that wait are cancelled."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _make(self, key: tuple[T, int], future: Future[bytes]) -> None:
        value, problem = b"", None
        try:
            value = as_jpeg(self._read(*key), key[1])
        except Exception as error:
            problem = error
        with self._lock:
            del self._pending[key]
            if problem is None:
                self._cache.put(key, value)
        if problem is None:
            future.set_result(value)
        else:
            future.set_exception(problem)


def as_jpeg(image: Image.Image, side: int) -> bytes:
    """Encode an RGB image as JPEG, reduced so that neither side exceeds `side`; metadata are left out."""
    image = image.copy()
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    for key in ("exif", "xmp", "icc_profile", "comment"):
        image.info.pop(key, None)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY, subsampling=0)
    return file.getvalue()
