"""Batches for training: every picture once an epoch, one random caption each, in an order made of seed and epoch alone.

Captions are tokenized once, at the start. Pictures come out as uint8 of the model's size: where all of them fit into
memory they are decoded once, else worker processes decode them as they are needed. Several ranks draw the same batches,
and each takes its own rows of them.
Letters: N pictures of the set, B batch, S picture side, T tokens.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from miniclip import distributed
from miniclip.data.pairs import PairData
from miniclip.errors import DataError
from miniclip.randomness import draw, generator
from miniclip.transforms import Preprocess

if TYPE_CHECKING:
    from miniclip.tokenizer import TextTokenizer

KEEP_BYTES = 2 << 30  # decoded pictures up to this size are kept in a machine's memory


class Batch(NamedTuple):
    """Matching pictures and captions; of several ranks, the rows of this one."""

    pixels: Tensor  # (B, 3, S, S) uint8
    tokens: Tensor  # (B, T) int64, T the longest caption's length
    indices: Tensor  # (B,) int64, which pictures of the set


class PairLoader:
    """Batches of a data set.

    The last, smaller batch of an epoch is left out, since the loss depends on the batch's size; each epoch leaves out
    other pictures. A set smaller than a batch is one batch.

    Args:
        data: pictures with captions.
        tokenizer: for the captions.
        preprocess: to the model's size.
        context_length: captions are cut there (the tokenizer warns).
        batch_size: B, of all ranks together.
        seed: of order and captions.
        workers: processes that decode pictures, for each rank; None: none where the decoded pictures are kept in
            memory (by every rank all of them), else one a core but one, eight at most, shared out to the ranks here.
        pad: rows of tokens as long as the context, for a text tower that attends to its padding.

    Attributes:
        size: N.
        batch_size: B, which is N where the set is smaller.
        rows: this rank's of each batch.

    Raises:
        ValueError: there are no pictures, or fewer rows in a batch than ranks.
        DataError: a picture cannot be read (at once where pictures are kept in memory, else when it is its turn).
    """

    def __init__(
        self,
        data: PairData,
        tokenizer: TextTokenizer,
        preprocess: Preprocess,
        *,
        context_length: int,
        batch_size: int,
        seed: int = 0,
        workers: int | None = None,
        pad: bool = False,
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
        self._captions = CaptionTable(data.captions, tokenizer, context_length, pad)
        self._pictures = open_pictures(data, preprocess, workers)

    @property
    def steps(self) -> int:
        """Batches an epoch."""
        return self.size // self.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, this rank's rows, from batch `start` on (to go on in the middle of one)."""
        order = torch.randperm(self.size, generator=generator(self.seed, "order", epoch))
        rows = order[: self.steps * self.batch_size].view(self.steps, self.batch_size)[start:, self.rows]
        for indices, pixels in zip(rows, self._pictures.batches(rows), strict=True):
            yield Batch(pixels, self._captions.choose(indices, self.seed, epoch), indices)


class CaptionTable:
    """All captions of a set as token ids, in one table."""

    def __init__(
        self, captions: Sequence[Sequence[str]], tokenizer: TextTokenizer, context_length: int, pad: bool
    ) -> None:
        self.counts = [len(c) for c in captions]
        self.first = torch.tensor([0, *self.counts]).cumsum(0)[:-1]  # where a picture's captions begin
        flat = [caption for group in captions for caption in group]
        tokens = tokenizer(flat, context_length=context_length, pad=pad)
        self.tokens = tokens.int()  # (all captions, T): half of int64's memory
        ends = torch.eq(self.tokens, -1 if tokenizer.end_id is None else tokenizer.end_id).int().argmax(dim=1) + 1
        self.lengths = torch.full_like(ends, tokens.shape[1]) if pad else ends

    def choose(self, indices: Tensor, seed: int, epoch: int) -> Tensor:
        """One caption for each picture, by the seed, the epoch and the picture's index alone: (B, T) int64."""
        picks = [draw(seed, "caption", epoch, i) % self.counts[i] for i in indices.tolist()]
        rows = self.first[indices] + torch.tensor(picks)
        return self.tokens[rows, : int(self.lengths[rows].max())].long()


class KeptPictures:
    """All pictures of a set, decoded once and kept: (N, 3, S, S) uint8."""

    def __init__(self, data: PairData, preprocess: Preprocess) -> None:
        self.pixels = torch.empty(len(data), 3, preprocess.size, preprocess.size, dtype=torch.uint8)

        def decode(index: int) -> None:
            self.pixels[index] = preprocess.pixels(data[index][0])

        # Threads, since decoding and resizing leave the interpreter's lock; list() raises what a thread raised.
        with ThreadPoolExecutor(_cores()) as pool:
            list(pool.map(decode, range(len(data))))

    def batches(self, rows: Tensor) -> Iterator[Tensor]:
        """(B, 3, S, S) for each row of indices (steps, B)."""
        return (self.pixels[indices] for indices in rows)


class StreamedPictures(Dataset[Tensor | DataError]):
    """Pictures decoded by worker processes as they are needed, a batch at a time."""

    def __init__(self, data: PairData, preprocess: Preprocess, workers: int | None) -> None:
        self.data, self.preprocess = data, preprocess
        self.workers = min(8, max(1, _cores() - 1)) if workers is None else workers

    def batches(self, rows: Tensor) -> Iterator[Tensor]:
        """(B, 3, S, S) for each row of indices (steps, B).

        Raises:
            DataError: a picture cannot be read.
        """
        loader = DataLoader(
            self,
            batch_sampler=rows.tolist(),
            num_workers=self.workers,
            collate_fn=_stack,
            worker_init_fn=_leave_signals_to_the_trainer,
            pin_memory=torch.cuda.is_available(),
        )
        for pixels in loader:
            if isinstance(pixels, DataError):
                raise pixels
            yield pixels

    def __getitem__(self, index: int) -> Tensor | DataError:
        """(3, S, S) uint8; an error is handed over as a value, or a worker would wrap its one line in a traceback."""
        try:
            return self.preprocess.pixels(self.data[index][0])
        except DataError as error:
            return error


def _cores() -> int:
    """The machine's, shared out to the ranks on it."""
    return max(1, (os.cpu_count() or 1) // distributed.ranks_here())


def _leave_signals_to_the_trainer(_: int) -> None:
    """Ctrl-C and torchrun reach the workers too, which must go on until the step in hand is done."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _stack(pictures: list[Tensor | DataError]) -> Tensor | DataError:
    """One tensor of a batch, or the first error in it."""
    for picture in pictures:
        if isinstance(picture, DataError):
            return picture
    return torch.stack(cast(list[Tensor], pictures))


def open_pictures(
    data: PairData, preprocess: Preprocess, workers: int | None = None
) -> KeptPictures | StreamedPictures:
    """Keep the decoded pictures where no workers are asked for and all ranks here keep `KEEP_BYTES` at most."""
    if workers is None and len(data) * 3 * preprocess.size**2 * distributed.ranks_here() <= KEEP_BYTES:
        return KeptPictures(data, preprocess)
    return StreamedPictures(data, preprocess, workers)
