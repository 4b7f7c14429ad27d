"""Token ids of all captions of a dataset, tokenized once. Letters: B batch, T tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from miniclip.data.cache.reading import CachedDataset
from miniclip.data.dataset import ImageCaptionDataset
from miniclip.data.given import as_dataset
from miniclip.utils.randomness import random_integer

if TYPE_CHECKING:
    from miniclip.tokenizer import TextTokenizer


class CaptionTable:
    """All captions of a dataset as token ids, in one table.

    Args:
        data: images with captions; a cache that holds token ids of this tokenizer is not tokenized again.
        tokenizer: for the captions.
        context_length: captions are truncated to it.
        pad: make all rows as long as the context.
    """

    def __init__(self, data: ImageCaptionDataset, tokenizer: TextTokenizer, context_length: int, pad: bool) -> None:
        data = as_dataset(data)
        self._counts = [len(captions) for captions in data.captions]
        self._first_rows = torch.tensor([0, *self._counts]).cumsum(0)[:-1]
        tokens = data.tokens(tokenizer, context_length, pad) if isinstance(data, CachedDataset) else None
        if tokens is None:
            flat = [caption for captions in data.captions for caption in captions]
            tokens = tokenizer(flat, context_length=context_length, pad=pad).int()
        self._tokens = tokens  # (all captions, T) int32, half the memory of int64
        ends = torch.eq(tokens, -1 if tokenizer.end_id is None else tokenizer.end_id).int().argmax(dim=1) + 1
        self._lengths = torch.full_like(ends, tokens.shape[1]) if pad else ends

    def draw(self, indices: Tensor, seed: int, epoch: int) -> Tensor:
        """Draw one caption for each image: (B, T) int64, T the longest one's length.

        The choice depends only on the seed, the epoch and the image's index.
        """
        rows = drawn_rows(self._counts, self._first_rows, indices, (seed, epoch))
        return self._tokens[rows, : int(self._lengths[rows].max())].long()


def drawn_rows(counts: Sequence[int], first_rows: Tensor, indices: Tensor, key: tuple[int, int]) -> Tensor:
    """Draw one caption for each image: its row in the list of all captions, (B,) int64.

    Args:
        counts: number of captions of every image.
        first_rows: row of every image's first caption.
        indices: (B,) the images.
        key: seed and epoch.
    """
    offsets = [random_integer(key[0], "caption", key[1], index) % counts[index] for index in indices.tolist()]
    return first_rows[indices] + torch.tensor(offsets)
