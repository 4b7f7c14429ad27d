"""Images in batches for the image tower: threads read the next batch while the model works on this one.

Threads are enough, since decoding and resizing release the interpreter's lock.
Letters: N images, B batch, n readable images of a batch, S image side, E embedding.
"""

from __future__ import annotations

import math
import os
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from itertools import islice
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import torch
from torch import Tensor

from miniclip.config import ImageConfig
from miniclip.data.decoding.jpeg import read_pixels as read_file_pixels
from miniclip.data.image_types import UNNAMED, as_image, encoded, existing, is_encoded
from miniclip.data.preprocess import Preprocess
from miniclip.data.skipping import reason_of
from miniclip.errors import DataError, UnreadableError
from miniclip.inference.batching import MAX_TOKENS, device_of, progress_bar, require_rows
from miniclip.models.clip import CLIP
from miniclip.models.vision import VisionTransformer
from miniclip.runtime.cores import available_cores
from miniclip.runtime.devices import send
from miniclip.tower_config import OtherImageConfig
from miniclip.utils.checks import whole_number
from miniclip.utils.threads import thread_pool

MAX_WORKERS = 16  # more threads wait for the interpreter's lock and for the disk
MAX_NAMED = 10  # images that a warning names

OnError = Literal["raise", "skip"]
Item = TypeVar("Item")


class ImageBatch(NamedTuple):
    """The readable images of a batch."""

    pixels: Tensor  # (n, 3, S, S) uint8
    indices: list[int]  # their places in the batch, n of 0..B-1


def check_options(num_workers: int | None, on_error: OnError) -> None:
    """Check the options of a reader.

    Raises:
        ValueError: one is out of range.
        TypeError: the number of threads is not an integer.
    """
    if on_error not in get_args(OnError):
        raise ValueError(f"on_error {on_error!r}: expected 'raise' or 'skip'")
    if num_workers is not None:
        whole_number("num_workers", num_workers, 0)


class ImageReader:
    """Reads images in batches, in order, ahead of the model.

    At most two batches of preprocessed images are in memory, and one full-size image per thread.

    Args:
        items: N inputs of `read_pixels`. A lazy sequence is indexed by the threads.
        preprocess: converts an image to pixels.
        batch_size: B.
        num_workers: threads; 0: read in the calling thread, not ahead; None: one per core, at most 16.
        on_error: "raise" or "skip" for an image that cannot be read.
        pinned: allocate batches in pinned memory, for asynchronous copies to a GPU.

    Attributes:
        failed: a message for each skipped image.

    Raises:
        ValueError: an option is out of range.
        TypeError: a number is not an integer.
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
        check_options(num_workers, on_error)
        self.items, self.preprocess, self.batch_size = items, preprocess, whole_number("batch_size", batch_size, 1)
        self.num_workers = count_workers(num_workers, len(items))
        self.on_error, self.pinned = on_error, pinned
        self.failed: list[str] = []

    def batches(self) -> Generator[ImageBatch, None, None]:
        """Yield the readable images of each batch. Closing the generator ends the threads."""
        with closing(self._results()) as results:
            for batch in results:
                yield self._stack(batch)

    def warn(self, stacklevel: int) -> None:
        """Warn about the images that were skipped, if any."""
        if not self.failed:
            return
        named, more = "; ".join(self.failed[:MAX_NAMED]), len(self.failed) - MAX_NAMED
        warnings.warn(
            f"{len(self.failed):,} of {len(self.items):,} images cannot be read, and their rows are NaN: {named}"
            + (f"; and {more:,} more" if more > 0 else ""),
            stacklevel=stacklevel + 1,
        )

    def _results(self) -> Generator[list[Tensor | str], None, None]:
        """Yield, for each batch, pixels or an error message per image."""
        return read_ahead(self._read, len(self.items), self.batch_size, self.num_workers)

    def _read(self, index: int) -> Tensor | str:
        """Pixels of an image (3, S, S), or the reason why it cannot be read."""
        try:
            return read_pixels(self.items[index], self.preprocess)
        except (DataError, OSError) as error:
            named = _named(error, index)
            if self.on_error == "skip":
                return " ".join(str(named).split())
            if named is error:
                raise
            raise named from error
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"image {index}: {error}") from error

    def _stack(self, batch: list[Tensor | str]) -> ImageBatch:
        readable = {index: pixels for index, pixels in enumerate(batch) if isinstance(pixels, Tensor)}
        self.failed += [reason for reason in batch if isinstance(reason, str)]
        shape = (len(readable), 3, self.preprocess.size, self.preprocess.size)
        stacked = torch.empty(shape, dtype=torch.uint8, device="cpu", pin_memory=self.pinned)
        if readable:
            torch.stack(list(readable.values()), out=stacked)  # writes every row, or raises
        return ImageBatch(stacked, list(readable))


def count_workers(num_workers: int | None, count: int) -> int:
    """Return the number of threads that read `count` images; None: one per core, at most 16."""
    workers = min(MAX_WORKERS, available_cores()) if num_workers is None else int(num_workers)
    return min(workers, count) if count > 1 else 0


def read_ahead(
    read: Callable[[int], Item], total: int, batch_size: int, num_workers: int
) -> Generator[list[Item], None, None]:
    """Yield `read(0)` to `read(total - 1)` in lists of `batch_size`; threads work at most two lists ahead.

    Closing the generator ends the threads.
    """
    sizes, indices = _batch_sizes(total, batch_size), iter(range(total))
    if not num_workers:
        for count in sizes:
            yield [read(index) for index in islice(indices, count)]
        return
    pending: deque[Future[Item]] = deque()
    with thread_pool(num_workers) as pool:
        for count in sizes:
            pending.extend(pool.submit(read, index) for index in islice(indices, 2 * batch_size - len(pending)))
            yield [pending.popleft().result() for _ in range(count)]


def _named(error: DataError | OSError, index: int) -> DataError | OSError:
    """Return an error that names the image: by its file, or else by its index."""
    if isinstance(error, FileNotFoundError) or (isinstance(error, UnreadableError) and error.name != UNNAMED):
        return error
    return UnreadableError(f"image {index}", reason_of(error))


def read_pixels(item: Any, preprocess: Preprocess) -> Tensor:
    """Convert an image of any type that `as_image` takes to pixels (3, S, S) of uint8.

    Raises:
        FileNotFoundError: the path does not exist.
        DataError: the file cannot be read as an image.
        TypeError: the item is something else.
    """
    if isinstance(item, str | os.PathLike):
        return read_file_pixels(existing(item), preprocess)  # JPEGs by the fast way
    if is_encoded(item):
        return read_file_pixels(encoded(item), preprocess, UNNAMED)
    return preprocess.pixels(as_image(item))


def embed_images(model: CLIP, preprocess: Preprocess, reader: ImageReader, progress: bool = False) -> Tensor:
    """Embed the images of a reader: (N, E) float32, not normalized. Rows of skipped images are NaN."""
    sizes = _batch_sizes(len(reader.items), reader.batch_size)

    def embed(batch: ImageBatch, count: int) -> Tensor:
        if len(batch.indices) == count:
            return embed_batch(model, preprocess, batch.pixels)
        rows = torch.full((count, model.config.embed_dim), torch.nan, dtype=torch.float32, device=device_of(model))
        if batch.indices:
            rows[batch.indices] = embed_batch(model, preprocess, batch.pixels)
        return rows

    with closing(reader.batches()) as batches:
        return _collect(
            model, (embed(batch, size) for batch, size in zip(batches, sizes, strict=True)), sizes, progress
        )


def embed_batch(model: CLIP, preprocess: Preprocess, pixels: Tensor) -> Tensor:
    """Embed pixels (B, 3, S, S) of uint8: (B, E) float32, not normalized."""
    return _embed(model, normalised_pixels(model, preprocess, pixels))


def normalised_pixels(model: CLIP, preprocess: Preprocess, pixels: Tensor) -> Tensor:
    """Normalize pixels (B, 3, S, S) of uint8, on the device and in the dtype of the image tower."""
    moved = send(pixels, device_of(model))  # uint8: a quarter of the bytes of float32
    return preprocess.normalise(moved).to(_dtype_of(model))


def embed_pixels(model: CLIP, pixels: Tensor, batch_size: int, progress: bool = False) -> Tensor:
    """Embed normalized pixels (N, 3, S, S): (N, E) float32, not normalized."""
    sizes = _batch_sizes(len(pixels), batch_size)
    return _collect(model, (_embed(model, part) for part in torch.split(pixels, sizes)), sizes, progress)


def _collect(model: CLIP, batches: Iterator[Tensor], sizes: list[int], progress: bool) -> Tensor:
    """Concatenate the embeddings of the batches: (N, E)."""
    rows = [torch.zeros(0, model.config.embed_dim, dtype=torch.float32, device=device_of(model))]
    with progress_bar(sum(sizes), " images", progress) as advance:
        for size, embeddings in zip(sizes, batches, strict=True):
            rows.append(embeddings)
            advance(size)
    return torch.cat(rows)


def _embed(model: CLIP, pixels: Tensor) -> Tensor:
    """Embed a batch in equal parts that fit a CPU's cache: (B, 3, S, S) to (B, E) float32."""
    config, dtype, device = model.config.image, _dtype_of(model), device_of(model)
    size = MAX_TOKENS.get(device.type, math.inf) / tokens_per_image(config)
    parts = math.ceil(len(pixels) / max(1, size)) if size < len(pixels) else 1
    rows = torch.cat([model.image(send(part, device).to(dtype)) for part in pixels.tensor_split(parts)]).float()
    return require_rows(rows, len(pixels), model.config.embed_dim)


def tokens_per_image(config: ImageConfig | OtherImageConfig) -> int:
    """Return the tokens of an image; for a tower without tokens, those of a vision transformer with patches of 16."""
    if isinstance(config, ImageConfig):
        return config.patches + config.class_token
    return max(1, config.image_size // 16) ** 2


def _dtype_of(model: CLIP) -> torch.dtype:
    image: Any = model.image
    return (image.patches.weight if isinstance(image, VisionTransformer) else next(image.parameters())).dtype


def _batch_sizes(total: int, size: int) -> list[int]:
    return [min(size, total - start) for start in range(0, total, size)]
