"""Token ids of all captions of a dataset, tokenized once. Letters: B batch, C captions per image, T tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from miniclip.data.cache.reading import CachedDataset
from miniclip.data.dataset import ImageCaptionDataset
from miniclip.data.given import as_dataset
from miniclip.data.options import LoaderOptions
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

    def draw(self, indices: Tensor, passes: Tensor, seed: int, per_image: int = 1) -> Tensor:
        """Draw captions for each image: (B * C, T) int64, an image's captions next to each other.

        The choice depends only on the seed, the image's index and its pass. No caption is drawn twice for an image
        before all of its captions are drawn. T is the longest caption's length. The first caption of each image is the
        one that is drawn if there is only one.

        Args:
            indices: (B,) indices of the images.
            passes: (B,) number of earlier passes over the images.
            seed: of the choice.
            per_image: C.
        """
        rows = self.rows(indices, passes, seed, per_image)
        return self._tokens[rows, : int(self._lengths[rows].max())].long()

    def rows(self, indices: Tensor, passes: Tensor, seed: int, per_image: int = 1) -> Tensor:
        """Return the rows of the captions that `draw` draws in the list of all captions: (B * C,) int64."""
        return drawn_rows(self._counts, self._first_rows, (indices, passes), seed, per_image)

    def pair(self, pixels: Tensor, indices: Tensor, passes: Tensor, options: LoaderOptions) -> tuple[Tensor, Tensor]:
        """Return images (B, 3, S, S), here unchanged, and their drawn captions (B * C, T)."""
        return pixels, self.draw(indices, passes, options.seed, options.captions_per_image)


def drawn_rows(
    counts: Sequence[int], first_rows: Tensor, images: tuple[Tensor, Tensor], seed: int, per_image: int = 1
) -> Tensor:
    """Draw captions for each image: their rows in the list of all captions, (B * C,) int64, image by image.

    Args:
        counts: number of captions of every image.
        first_rows: row of every image's first caption.
        images: (B,) their indices, and (B,) the numbers of earlier passes over them.
        seed: of the choice.
        per_image: C.
    """
    indices, passes = images
    keys = zip(passes.tolist(), indices.tolist(), strict=True)
    offsets = [_offsets(counts[index], (seed, "caption", number, index), per_image) for number, index in keys]
    return (first_rows[indices, None] + torch.tensor(offsets)).flatten()


def _offsets(count: int, key: tuple[int | str, ...], per_image: int) -> list[int]:
    """Return the places of C captions among those of an image."""
    drawn = [random_integer(*key) % count]
    left = [offset for offset in range(count) if offset != drawn[0]]
    for number in range(1, per_image):
        left = left or list(range(count))
        drawn.append(left.pop(random_integer(*key, number) % len(left)))
    return drawn


def caption_keys(tokens: Tensor, tokenizer: TextTokenizer | None) -> Tensor:
    """Return a hash of each caption's tokens (n, T), independent of padding: (n,) int64, on the CPU."""
    end_id = None if tokenizer is None else tokenizer.end_id
    if end_id is None:
        lengths = torch.full((len(tokens),), tokens.shape[1])
    else:
        lengths = (tokens == end_id).int().argmax(dim=1).add(1)
    rows = tokens.cpu().numpy()
    return hashes(row[:length].tobytes() for row, length in zip(rows, lengths.tolist(), strict=True))


def hashes(rows: Iterable[bytes]) -> Tensor:
    """Return a hash of each row: (n,) int64."""
    digests = [hashlib.blake2b(row, digest_size=8).digest() for row in rows]
    return torch.tensor([int.from_bytes(digest, "big", signed=True) for digest in digests], dtype=torch.int64)
