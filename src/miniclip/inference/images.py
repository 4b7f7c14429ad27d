"""Whatever stands for a picture, to the pixels that the image tower takes: read by threads, ahead of the model.

Threads, since decoding and resizing leave the interpreter's lock. Letters: N pictures, B batch, S side, E embedding.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from miniclip.data.decoding import as_image, existing
from miniclip.data.jpeg import read_pixels
from miniclip.data.preprocess import Preprocess
from miniclip.errors import DataError
from miniclip.utils.threads import available_cores, thread_pool

MOST_WORKERS = 16  # beyond that they wait for the interpreter's lock, and for the disk
SHOWN = 10  # pictures that a warning names; a list of thousands helps nobody

OnError = Literal["raise", "skip"]


class Read(NamedTuple):
    """What could be read of a batch."""

    pixels: Tensor  # (n, 3, S, S) uint8, n of the B in their order
    places: list[int]  # theirs in the batch, n of 0..B-1


class ImageReader:
    """Pictures in batches, in the order given; while the model works on one, the next is read.

    Never more than two batches are in memory, at the model's size, and as many whole pictures as there are threads.

    Args:
        items: N of what `pixels_of` takes; a sequence that opens its pictures when it is asked is asked by the threads.
        preprocess: how they become pixels.
        batch_size: B.
        num_workers: threads that read; 0: none, and nothing is read ahead; None: one a core.
        on_error: "raise" what is wrong with a picture, in its turn; or "skip": go on without it.
        pinned: in memory that a GPU can copy from while it computes.

    Attributes:
        failed: each picture that was skipped, with the reason.

    Raises:
        ValueError: an option out of its range.
    """

    def __init__(
        self,
        items: Sequence[Any],
        preprocess: Preprocess,
        batch_size: int,
        *,
        num_workers: int | None = None,
        on_error: OnError = "raise",
        pinned: bool = False,
    ) -> None:
        if on_error not in get_args(OnError):
            raise ValueError(f"on_error {on_error!r}: expected 'raise' or 'skip'")
        if num_workers is not None and num_workers < 0:
            raise ValueError(f"num_workers {num_workers}: expected at least 0")
        self.items, self.preprocess, self.batch_size = items, preprocess, batch_size
        wanted = min(MOST_WORKERS, available_cores()) if num_workers is None else num_workers
        self.num_workers = min(wanted, len(items)) if len(items) > 1 else 0
        self.on_error, self.pinned = on_error, pinned
        self.failed: list[str] = []

    def batches(self) -> Generator[Read, None, None]:
        """What could be read of each batch; closing it ends the threads, and so does whatever is raised."""
        with closing(self._in_turn()) as turns:
            for found in turns:
                yield self._together(found)

    def warn(self, stacklevel: int) -> None:
        """Name what could not be read so far, if anything."""
        failed = self.failed
        named = "; ".join(failed[:SHOWN]) + (f"; and {len(failed) - SHOWN:,} more" if len(failed) > SHOWN else "")
        if failed:
            warnings.warn(
                f"{len(failed):,} of {len(self.items):,} pictures cannot be read, and their rows are NaN: {named}",
                stacklevel=stacklevel + 1,
            )

    def _in_turn(self) -> Generator[list[Tensor | str], None, None]:
        total, size = len(self.items), self.batch_size
        sizes = [min(size, total - start) for start in range(0, total, size)]
        left = iter(range(total))
        if not self.num_workers:
            for count in sizes:
                yield [self._read(index) for index in islice(left, count)]
            return
        waiting: deque[Future[Tensor | str]] = deque()
        with thread_pool(self.num_workers) as pool:
            for count in sizes:
                waiting.extend(pool.submit(self._read, index) for index in islice(left, 2 * size - len(waiting)))
                yield [waiting.popleft().result() for _ in range(count)]

    def _read(self, index: int) -> Tensor | str:
        """The pixels of a picture (3, S, S), or what is wrong with it."""
        try:
            return pixels_of(self.items[index], self.preprocess)
        except (DataError, OSError) as error:
            if self.on_error == "raise":
                raise
            said = " ".join(str(error).split())
            return said if isinstance(error, DataError | FileNotFoundError) else f"picture {index}: {said}"

    def _together(self, found: list[Tensor | str]) -> Read:
        places = [place for place, pixels in enumerate(found) if isinstance(pixels, Tensor)]
        self.failed += [reason for reason in found if isinstance(reason, str)]
        side = self.preprocess.size
        batch = torch.empty(len(places), 3, side, side, dtype=torch.uint8, pin_memory=self.pinned)
        for row, place in zip(batch, places, strict=True):
            row.copy_(found[place])
        return Read(batch, places)


def pixels_of(item: Any, preprocess: Preprocess) -> Tensor:
    """A path, a PIL image or an array (H, W, 3) of uint8 to uint8 (3, S, S); a path's JPEG the fast way.

    Raises:
        FileNotFoundError: the path does not exist.
        DataError: the file cannot be read as a picture.
        TypeError: something else was passed.
    """
    if isinstance(item, str | Path):
        return read_pixels(existing(item), preprocess)
    return preprocess.pixels(as_image(item))


def in_places(rows: Tensor, places: list[int], count: int) -> Tensor:
    """Embeddings (n, E) of some of a batch to (B, E), B of `count`; the others' are NaN."""
    if len(places) == count:
        return rows
    whole = rows.new_full((count, rows.shape[1]), torch.nan)
    whole[places] = rows
    return whole
