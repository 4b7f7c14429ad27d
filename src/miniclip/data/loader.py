"""Batches for training: every picture once an epoch, one random caption each, in an order made of seed and epoch alone.

Captions are tokenized once, at the start. Pictures come out as uint8 of the model's size, from whichever source suits
the set (sources.py). Several ranks draw the same batches, and each takes its own rows of them.
Letters: N pictures of the set, B batch, S picture side, T tokens.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from miniclip.data.cache.reading import CachedDataset
from miniclip.data.dataset import ImageCaptionDataset, name_of
from miniclip.data.skipping import MAX_SKIP_FRACTION, OnError, SkipLog
from miniclip.data.sources import Batches, Decoded, InMemoryImages, open_image_source
from miniclip.data.transforms import Preprocess
from miniclip.errors import DataError
from miniclip.runtime import distributed
from miniclip.utils.randomness import draw, generator

if TYPE_CHECKING:
    from miniclip.tokenizer import TextTokenizer


class Batch(NamedTuple):
    """Matching pictures and captions; of several ranks, the rows of this one."""

    pixels: Tensor  # (B, 3, S, S) uint8
    tokens: Tensor  # (B, T) int64, T the longest caption's length
    indices: Tensor  # (B,) int64, which pictures of the set
    rows: Tensor  # (B,) int64, which rows of the whole batch: all of this rank's but those that could not be read


class ImageCaptionLoader:
    """Batches of a data set.

    The last, smaller batch of an epoch is left out, since the loss depends on the batch's size; each epoch leaves out
    other pictures. A set smaller than a batch is one batch.

    The next batches are made while the model works on this one, over the ends of epochs too. `close` ends what makes
    them.

    Args:
        data: pictures with captions.
        tokenizer: for the captions.
        preprocess: to the model's size.
        context_length: captions are cut there (the tokenizer warns).
        batch_size: B, of all ranks together.
        seed: of order and captions.
        num_workers: processes that decode pictures, for each rank; None: none where the decoded pictures are kept in
            memory (by every rank all of them), else one a core but one, eight at most, shared out to the ranks here.
            A packed set needs none.
        pad: rows of tokens as long as the context, for a text tower that attends to its padding.
        reduced: decode large JPEGs at a part of their size, no less than twice the model's, and resize JPEGs by torch:
            much faster, and a pixel differs by a grey level or so (docs/packing.md).
        on_error: "raise" at the first picture that cannot be read; or "skip": warn of it by name, and leave its pair
            out of its batch, which is then smaller by it. No other pair takes its place: it could be in the batch
            already, as its own false negative.
        max_skip_fraction: the share of the pictures that may be left out, as far as this rank knows of them.

    Attributes:
        size: N.
        batch_size: B, which is N where the set is smaller.
        rows: this rank's of each batch.
        skip_log: the pictures that could not be read so far.
        waited: seconds in which batches were waited for, so far; whoever reads it may set it to 0.

    Raises:
        ValueError: there are no pictures, or fewer rows in a batch than ranks; a packed set of other pixels.
        DataError: a picture cannot be read (at once where pictures are kept in memory, else when it is its turn), or
            too many were left out.
    """

    def __init__(
        self,
        data: ImageCaptionDataset,
        tokenizer: TextTokenizer,
        preprocess: Preprocess,
        *,
        context_length: int,
        batch_size: int,
        seed: int = 0,
        num_workers: int | None = None,
        pad: bool = False,
        reduced: bool = False,
        on_error: OnError = "raise",
        max_skip_fraction: float = MAX_SKIP_FRACTION,
    ) -> None:
        if not len(data):
            raise ValueError("the training data are empty: there is nothing to train on")
        self.size = len(data)
        self.batch_size = min(batch_size, self.size)
        if self.batch_size < distributed.world_size():
            raise ValueError(
                f"a batch of {self.batch_size} pairs for {distributed.world_size()} ranks: each needs one at least; "
                "start fewer processes, or take a larger batch_size"
            )
        self.rows = distributed.part(self.batch_size)
        self.seed = seed
        self.skip_log = SkipLog(on_error, max_skip_fraction)
        self.waited = 0.0
        self._data = data
        self._captions = CaptionTable(data, tokenizer, context_length, pad)
        self._pictures = open_image_source(data, preprocess, num_workers, reduced=reduced, on_error=on_error)
        self._stream: Batches | None = None
        self._position: tuple[int, int] | None = None  # epoch and number of the batch that the stream gives next
        if isinstance(self._pictures, InMemoryImages):
            self._leave_out(self._pictures.failed)

    @property
    def steps(self) -> int:
        """Batches an epoch."""
        return self.size // self.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, this rank's rows, from batch `start` on (to go on in the middle of one)."""
        order = self._order(epoch)
        for number in range(start, self.steps):
            began = time.perf_counter()
            try:
                batch = self._match(order[number], self._next(epoch, number), epoch)
            except BaseException:
                self.close()  # now, and not when the traceback is forgotten
                raise
            self.waited += time.perf_counter() - began
            yield batch

    def close(self) -> None:
        """End the processes and threads that work ahead; the next batch starts them again."""
        self._position = None
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _order(self, epoch: int) -> Tensor:
        """Which pictures are in this rank's rows of each batch: (steps, B)."""
        order = torch.randperm(self.size, generator=generator(self.seed, "order", epoch))
        return order[: self.steps * self.batch_size].view(self.steps, self.batch_size)[:, self.rows]

    def _rows_from(self, epoch: int, number: int) -> Iterator[list[int]]:
        """The rows of that batch and of all after it, epoch after epoch."""
        for later in count(epoch):
            yield from self._order(later)[number if later == epoch else 0 :].tolist()

    def _next(self, epoch: int, number: int) -> Decoded:
        """The pixels of a batch: the stream's next, as a rule; else a stream is begun there."""
        if self._position != (epoch, number) or self._stream is None:
            self.close()
            self._stream = self._pictures.batches(self._rows_from(epoch, number))
        self._position = None  # unless this succeeds
        decoded = next(self._stream)
        self._position = (epoch, number + 1) if number + 1 < self.steps else (epoch + 1, 0)
        return decoded

    def _match(self, indices: Tensor, decoded: Decoded, epoch: int) -> Batch:
        """The captions to the pixels that could be read.

        Raises:
            DataError: too many of all pictures could not, or none of these.
        """
        self._leave_out(decoded.failed)
        kept = torch.tensor([row for row, i in enumerate(indices.tolist()) if i not in decoded.failed])
        if not len(kept):
            raise DataError(f"none of the {len(indices)} pictures of a batch can be read: mend them, or take them out")
        indices = indices[kept]
        tokens = self._captions.choose(indices, self.seed, epoch)
        return Batch(decoded.pixels, tokens, indices, kept + self.rows.start)

    def _leave_out(self, failed: dict[int, str]) -> None:
        """Raise, or warn of them, and see that they are few."""
        for index, reason in failed.items():
            self.skip_log.add(name_of(self._data, index), reason)
        self.skip_log.check_fraction(self.size)


class CaptionTable:
    """All captions of a set as token ids, in one table."""

    def __init__(self, data: ImageCaptionDataset, tokenizer: TextTokenizer, context_length: int, pad: bool) -> None:
        self.counts = [len(c) for c in data.captions]
        self.first = torch.tensor([0, *self.counts]).cumsum(0)[:-1]  # where a picture's captions begin
        packed = data.tokens(tokenizer, context_length, pad) if isinstance(data, CachedDataset) else None
        if packed is None:
            flat = [caption for group in data.captions for caption in group]
            packed = tokenizer(flat, context_length=context_length, pad=pad).int()
        self.tokens = packed  # (all captions, T) int32: half of int64's memory
        ends = torch.eq(self.tokens, -1 if tokenizer.end_id is None else tokenizer.end_id).int().argmax(dim=1) + 1
        self.lengths = torch.full_like(ends, self.tokens.shape[1]) if pad else ends

    def choose(self, indices: Tensor, seed: int, epoch: int) -> Tensor:
        """One caption for each picture, by the seed, the epoch and the picture's index alone: (B, T) int64."""
        picks = [draw(seed, "caption", epoch, i) % self.counts[i] for i in indices.tolist()]
        rows = self.first[indices] + torch.tensor(picks)
        return self.tokens[rows, : int(self.lengths[rows].max())].long()
