"""Where a batch's pixels come from: memory, worker processes that decode, or a packed set; the same pixels of each.

Each source has `batches(rows)`: for each row of indices, in order, what could be read of it. A source that works ahead
does so over the ends of epochs, since the rows go on; closing the generator ends its processes and threads.
Letters: N pictures of the set, B batch, S picture side.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from miniclip.data.cache.reading import CachedDataset
from miniclip.data.dataset import ImageCaptionDataset, file_of, image_of, name_of
from miniclip.data.skipping import OnError, reason_of
from miniclip.data.transforms import Preprocess
from miniclip.errors import DataError, UnreadableError
from miniclip.runtime import distributed
from miniclip.utils.threads import cores, threads

KEEP_BYTES = 2 << 30  # decoded pictures up to this size are kept in a machine's memory
REDUCED = 2  # a JPEG is decoded at a part of its size that leaves so many times the model's: the resizing then hides it
AHEAD = 2  # batches that a worker, or the thread that reads a packed set, has ready or in hand

T = TypeVar("T")
R = TypeVar("R")
Rows = Iterable[Sequence[int]]


class Decoded(NamedTuple):
    """What could be read of a batch."""

    pixels: Tensor  # (n, 3, S, S) uint8, n of the B in their order
    failed: dict[int, str]  # the others: the index of a picture, and what is wrong with it


Batches = Generator[Decoded, None, None]


class InMemoryImages:
    """All pictures of a set, decoded once and kept: (N, 3, S, S) uint8."""

    def __init__(
        self, data: ImageCaptionDataset, preprocess: Preprocess, *, reduced: bool = False, on_error: OnError = "raise"
    ) -> None:
        self.pixels = torch.empty(len(data), 3, preprocess.size, preprocess.size, dtype=torch.uint8)
        failed: dict[int, str] = {}

        def decode(index: int) -> None:
            pixels = pixels_or_reason(data, index, preprocess, reduced)
            if isinstance(pixels, Tensor):
                self.pixels[index] = pixels
            elif on_error == "raise":  # now, and not when all the others are read
                raise UnreadableError(name_of(data, index), pixels)
            else:
                failed[index] = pixels

        # Threads, since decoding and resizing leave the interpreter's lock; list() raises what a thread raised.
        with threads(cores()) as pool:
            list(pool.map(decode, range(len(data))))
        self.failed = dict(sorted(failed.items()))

    def batches(self, rows: Rows) -> Batches:
        """What could be read of each row of indices."""
        for row in rows:
            kept = [i for i in row if i not in self.failed]
            yield Decoded(self.pixels[kept], {i: self.failed[i] for i in row if i in self.failed})


class CachedImages:
    """Those of a packed set, copied from its map by a thread ahead of the model."""

    def __init__(self, data: CachedDataset, preprocess: Preprocess) -> None:
        data.require(preprocess)
        self.data = data

    def batches(self, rows: Rows) -> Batches:
        """What each row of indices names."""
        return ahead(rows, self._read)

    def _read(self, row: Sequence[int]) -> Decoded:
        pixels = self.data.pixels(row)
        return Decoded(pixels.pin_memory() if torch.cuda.is_available() else pixels, {})


class StreamedImages(Dataset[Any]):
    """Pictures decoded by worker processes as they are needed, a batch at a time.

    The workers are started once and go on from epoch to epoch.
    """

    def __init__(
        self,
        data: ImageCaptionDataset,
        preprocess: Preprocess,
        num_workers: int | None = None,
        *,
        reduced: bool = False,
    ) -> None:
        import torchvision.transforms.v2  # noqa: F401  # a second, here instead of in every worker

        self.data, self.preprocess, self.reduced = data, preprocess, reduced
        self.num_workers = min(8, max(1, cores() - 1)) if num_workers is None else num_workers
        self._stopping: Any = None

    def batches(self, rows: Rows) -> Batches:
        """What could be read of each row of indices.

        Raises:
            ChildProcessError: a worker was killed.
        """
        self._stopping = torch.multiprocessing.Event() if self.num_workers else None
        loader = DataLoader(
            self,
            batch_sampler=rows,  # type: ignore[arg-type]  # any iterable of lists does, and this one may have no end
            num_workers=self.num_workers,
            prefetch_factor=AHEAD if self.num_workers else None,
            collate_fn=_as_it_is,
            worker_init_fn=self._leave_signals_to_the_trainer,
            pin_memory=torch.cuda.is_available(),
        )
        batches = iter(loader)
        try:
            with deaths_named(receiving=self.num_workers > 0):
                yield from batches
        finally:
            if self._stopping is not None:
                self._stopping.set()
            stop = getattr(batches, "_shutdown_workers", None)  # torch does it when the iterator is collected, which
            if stop is not None:  # a traceback that is kept would put off
                with suppress(RuntimeError):  # that one of them was killed, once more
                    stop()

    def __getitems__(self, row: Sequence[int]) -> Decoded:
        """A batch; what cannot be read is handed over as a value, or a worker would wrap it in a traceback."""
        size = self.preprocess.size
        pixels = torch.empty(len(row), 3, size, size, dtype=torch.uint8)
        failed: dict[int, str] = {}
        filled = 0
        for index in row:
            if self._stopping is not None and self._stopping.is_set():
                break  # nobody will ask for the rest
            found = pixels_or_reason(self.data, index, self.preprocess, self.reduced)
            if isinstance(found, Tensor):
                pixels[filled] = found
                filled += 1
            else:
                failed[index] = found
        return Decoded(pixels[:filled].clone() if failed else pixels, failed)

    def _leave_signals_to_the_trainer(self, _: int) -> None:
        """Ctrl-C and torchrun reach the workers too, which must go on until the step in hand is done."""

        def end(number: int, frame: Any) -> None:
            if self._stopping.is_set():
                os._exit(0)

        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, end)


def open_image_source(
    data: ImageCaptionDataset,
    preprocess: Preprocess,
    num_workers: int | None = None,
    *,
    reduced: bool = False,
    on_error: OnError = "raise",
) -> InMemoryImages | StreamedImages | CachedImages:
    """The source that suits a set.

    A packed one is read as it is. Else the decoded pictures are kept where no workers are asked for and all ranks here
    keep `KEEP_BYTES` at most; else they are streamed.
    """
    if isinstance(data, CachedDataset):
        return CachedImages(data, preprocess)
    if num_workers is None and len(data) * 3 * preprocess.size**2 * distributed.ranks_here() <= KEEP_BYTES:
        return InMemoryImages(data, preprocess, reduced=reduced, on_error=on_error)
    return StreamedImages(data, preprocess, num_workers, reduced=reduced)


def pixels_or_reason(data: ImageCaptionDataset, index: int, preprocess: Preprocess, reduced: bool) -> Tensor | str:
    """A picture at the model's size, (3, S, S) uint8; or why it cannot be read, in a line without its name.

    Args:
        data: the set.
        index: which picture of it.
        preprocess: how it becomes pixels.
        reduced: the fast way, which is a grey level off: `Preprocess.read`, of a part of a large JPEG's size.
    """
    at_least = REDUCED * preprocess.size if reduced else None
    try:
        file = file_of(data, index) if reduced else None
        if file is not None:
            return preprocess.read(file, name_of(data, index), at_least)
        return preprocess.pixels(image_of(data, index, at_least))
    except (DataError, OSError) as error:
        return reason_of(error)


@contextmanager
def deaths_named(receiving: bool = False) -> Iterator[None]:
    """A context in which the death of a worker, which torch raises wherever the main thread is, has an explanation.

    Args:
        receiving: a connection that breaks, or is not there, is such a death too.

    Raises:
        ChildProcessError: a worker was killed.
    """
    try:
        yield
    except (RuntimeError, EOFError, OSError) as error:
        broken = receiving and isinstance(error, EOFError | ConnectionError | FileNotFoundError)
        if not broken and not str(error).startswith("DataLoader worker"):
            raise
        raise ChildProcessError(
            f"a process that decodes pictures died ({' '.join(str(error).split())}): most often the machine, or "
            "/dev/shm, is out of memory; take fewer workers or smaller batches, or pack the set with `miniclip data "
            "pack`"
        ) from error


def ahead(items: Iterable[T], function: Callable[[T], R], count: int = AHEAD) -> Generator[R, None, None]:
    """The function of each item, in order, computed by a thread up to `count` items before it is asked for."""
    pool = ThreadPoolExecutor(1)
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _as_it_is(batch: Any) -> Any:
    return batch
