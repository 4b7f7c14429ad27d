"""Images of a decoded cache, read by a thread ahead of the model."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from miniclip.data.cache.reading import CachedDataset
from miniclip.data.preprocess import Preprocess
from miniclip.data.sources.common import Decoded, DecodedBatches, IndexBatches

PREFETCH_BATCHES = 2

T = TypeVar("T")
R = TypeVar("R")


class CachedImages:
    """Images of a cached dataset.

    Raises:
        ValueError: the cache was built for other preprocessing.
    """

    def __init__(self, data: CachedDataset, preprocess: Preprocess) -> None:
        data.require(preprocess)
        self.data = data

    def batches(self, indices: IndexBatches) -> DecodedBatches:
        """Yield the images of each list of indices."""
        return prefetch(indices, self._read)

    def _read(self, batch: Sequence[int]) -> Decoded:
        pixels = self.data.pixels(batch)
        return Decoded(pixels.pin_memory() if torch.cuda.is_available() else pixels, {})


def prefetch(items: Iterable[T], function: Callable[[T], R], count: int = PREFETCH_BATCHES) -> Generator[R, None, None]:
    """Yield the function of each item, in order, computed by a thread up to `count` items ahead."""
    pool = ThreadPoolExecutor(1)
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > count:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
