"""Training batches: each image at most once per epoch, random captions of it, in an order set by seed and epoch.

Letters: B images of the batch, C captions per image, S image side, T tokens.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor

from miniclip.data.dataset import ImageCaptionDataset
from miniclip.data.options import LoaderOptions
from miniclip.data.preprocess import Preprocess
from miniclip.data.skipping import SkipLog
from miniclip.data.sources.selection import open_image_source
from miniclip.data.sources.stream import ImageStream
from miniclip.data.text_augmentation import caption_table
from miniclip.runtime import distributed
from miniclip.tokenizer import TextTokenizer
from miniclip.utils.randomness import generator


class Batch(NamedTuple):
    """Matching images and captions; with several ranks, this rank's rows."""

    pixels: Tensor  # (B, 3, S, S) uint8
    tokens: Tensor  # (B * C, T) int64, image by image; T the longest caption, or the context length if padded
    indices: Tensor  # (B,) int64, the images' indices in the dataset
    rows: Tensor  # (B,) int64, the rows of the global batch; images that cannot be read are left out
    passes: Tensor  # (B,) int64, the number of earlier passes over the images; it draws the captions


class ImageCaptionLoader:
    """Batches of a dataset, read ahead of the model until `close`.

    An epoch's last, incomplete batch is dropped, since the loss depends on the batch size. A dataset smaller than a
    batch is one batch.

    Attributes:
        rows: this rank's rows of the global batch of `batch_size` rows.
        captions: all captions, and the choice among them.
        skip_log: images that could not be read so far.
        wait_seconds: time spent waiting for batches; callers may reset it.

    Raises:
        ValueError: the dataset is empty, a batch has fewer rows than ranks, or a cache has another preprocessing.
        DataError: an image cannot be read, or too many were skipped.
    """

    def __init__(
        self, data: ImageCaptionDataset, tokenizer: TextTokenizer, preprocess: Preprocess, options: LoaderOptions
    ) -> None:
        self.size, self.options = len(data), options
        self.batch_size = options.global_batch_size(self.size)
        self.rows = distributed.rank_slice(self.batch_size)
        self.wait_seconds = 0.0
        self.skip_log = SkipLog(options.on_error, options.max_skip_fraction)
        self.source = open_image_source(data, preprocess, options)
        self.captions = caption_table(data, tokenizer, options)
        self._images = ImageStream(data, self.source, self.skip_log, self._indices_from)

    @property
    def steps(self) -> int:
        """Batches per epoch."""
        return self.size // self.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield this rank's rows of an epoch's batches, from batch `start` on."""
        order, passes = self._order(epoch)
        for number in range(start, self.steps):
            began = time.perf_counter()
            pixels, rows = self._images.read(epoch * self.steps + number, order[number].tolist())
            readable = torch.tensor(rows)
            indices, earlier = order[number][readable], passes[number][readable]
            pair = self.captions.pair(pixels, indices, earlier)
            self.wait_seconds += time.perf_counter() - began
            yield Batch(*pair, indices, self.rows.start + readable, earlier)

    def close(self) -> None:
        """Stop the processes and threads that read ahead; the next batch starts them again."""
        self._images.close()

    def _order(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Return the indices of the images in this rank's rows of each batch, and their passes: both (steps, B)."""
        order = torch.randperm(self.size, generator=generator(self.options.seed, "order", epoch))
        order = order[: self.steps * self.batch_size].view(self.steps, self.batch_size)[:, self.rows]
        return order, torch.full_like(order, epoch)

    def _indices_from(self, step: int) -> Iterator[list[int]]:
        """Yield the indices of a step's batch and of all later ones, epoch after epoch."""
        first, start = divmod(step, self.steps)
        for epoch in count(first):
            yield from self._order(epoch)[0][start if epoch == first else 0 :].tolist()
