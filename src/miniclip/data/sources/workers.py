"""Images decoded by worker processes as they are needed. Letters: B batch, S image side."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from miniclip.data.dataset import ImageCaptionDataset
from miniclip.data.decoding.jpeg import register_decoder
from miniclip.data.preprocess import Preprocess
from miniclip.data.sources.common import Decoded, DecodedBatches, IndexBatches, pixels_or_reason
from miniclip.runtime.cores import available_cores

MAX_DEFAULT_WORKERS = 8
PREFETCH_BATCHES = 2  # per worker


class StreamedImages(Dataset[Any]):
    """Images decoded by worker processes, one batch at a time.

    The workers start once and continue from epoch to epoch.

    Args:
        data: images with captions.
        preprocess: the model's preprocessing.
        num_workers: processes; 0: decode in this process; None: one per core except one, at most 8.
        reduced: see `pixels_or_reason`.
    """

    def __init__(
        self,
        data: ImageCaptionDataset,
        preprocess: Preprocess,
        num_workers: int | None = None,
        *,
        reduced: bool = False,
    ) -> None:
        if reduced:
            register_decoder()  # here once instead of in every worker

        self.data, self.preprocess, self.reduced = data, preprocess, reduced
        self.num_workers = (
            min(MAX_DEFAULT_WORKERS, max(1, available_cores() - 1)) if num_workers is None else num_workers
        )
        self._stopping: Any = None

    def batches(self, indices: IndexBatches) -> DecodedBatches:
        """Yield the readable images of each list of indices.

        Raises:
            ChildProcessError: a worker was killed.
        """
        self._stopping = torch.multiprocessing.Event() if self.num_workers else None
        loader = DataLoader(
            self,
            batch_sampler=indices,  # type: ignore[arg-type]  # any iterable of lists works, an endless one too
            num_workers=self.num_workers,
            prefetch_factor=PREFETCH_BATCHES if self.num_workers else None,
            collate_fn=_identity,
            worker_init_fn=self._start_worker,
            pin_memory=torch.cuda.is_available(),
        )
        batches = iter(loader)
        try:
            with worker_deaths_explained(receiving=self.num_workers > 0):
                yield from batches
        finally:
            if self._stopping is not None:
                self._stopping.set()
            # torch shuts the workers down when the iterator is collected, which a stored traceback would delay.
            shut_down = getattr(batches, "_shutdown_workers", None)
            if shut_down is not None:
                with suppress(RuntimeError):  # repeats that a worker was killed
                    shut_down()

    def __getitems__(self, batch: Sequence[int]) -> Decoded:
        """Read a batch. Failures are returned as values, since a worker would wrap exceptions in a traceback."""
        size = self.preprocess.size
        buffer = torch.empty(len(batch), 3, size, size, dtype=torch.uint8)
        failed: dict[int, str] = {}
        count = 0
        for index in batch:
            if self._stopping is not None and self._stopping.is_set():
                break
            pixels = pixels_or_reason(self.data, index, self.preprocess, reduced=self.reduced)
            if isinstance(pixels, Tensor):
                buffer[count] = pixels
                count += 1
            else:
                failed[index] = pixels
        return Decoded(buffer if count == len(batch) else buffer[:count].clone(), failed)  # no row that was not read

    def _start_worker(self, _: int) -> None:
        """Let a worker finish the current step, and end it with its trainer.

        Ctrl-C and torchrun signal the workers as well as the trainer, so the signals are ignored. A trainer that is
        killed cannot stop its workers; torch notices it only between batches, and not if a file system hangs.
        """

        def end(number: int, frame: Any) -> None:
            if self._stopping.is_set():
                os._exit(0)

        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, end)
        threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait for the end of the process that started this one, then end."""
    parent, parent_id = multiprocessing.parent_process(), os.getppid()
    if parent is not None:
        while parent.is_alive() and os.getppid() == parent_id:  # a process that was forked later can hold its pipe
            parent.join(timeout=1)
        os._exit(1)


@contextmanager
def worker_deaths_explained(receiving: bool = False) -> Iterator[None]:
    """Context that turns torch's error about a killed worker, raised anywhere in the main thread, into a clear one.

    Args:
        receiving: the body reads from the workers, so a broken or missing connection means a killed worker too.

    Raises:
        ChildProcessError: a worker was killed.
    """
    try:
        yield
    except (RuntimeError, EOFError, OSError) as error:
        disconnected = receiving and isinstance(error, EOFError | ConnectionError | FileNotFoundError)
        if not disconnected and not str(error).startswith(("DataLoader worker", "Pin memory thread exited")):
            raise
        raise ChildProcessError(
            f"a process that decodes images was killed ({' '.join(str(error).split())}): usually the machine, or "
            "/dev/shm, is out of memory; use fewer workers or smaller batches, or build a cache with `miniclip data "
            "cache`"
        ) from error


def _identity(batch: Any) -> Any:
    return batch
