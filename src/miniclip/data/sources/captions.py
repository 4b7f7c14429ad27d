"""Token ids of all captions of a dataset, tokenized once. Letters: B batch, C captions per image, T tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from miniclip.data.cache.reading import CachedDataset
from miniclip.data.dataset import ImageCaptionDataset
from miniclip.data.given import as_dataset
from miniclip.data.options import LoaderOptions
from miniclip.data.sources.caption_rows import CaptionRows

if TYPE_CHECKING:
    from miniclip.tokenizer import TextTokenizer


class CaptionTable:
    """All captions of a dataset as token ids, in one table.

    Args:
        data: images with captions; a cache that holds token ids of this tokenizer is not tokenized again.
        tokenizer: for the captions.
        options: of the loader: the context length, to which captions are truncated, and the choice of captions.

    Attributes:
        rows: the choice of captions.
        truncated: number of captions that are longer than the context length.
    """

    def __init__(self, data: ImageCaptionDataset, tokenizer: TextTokenizer, options: LoaderOptions) -> None:
        data, length, pad = as_dataset(data), options.context_length, options.pad
        self.rows = CaptionRows(data.captions, options.seed, options.captions_per_image)
        tokens = data.tokens(tokenizer, length, pad) if isinstance(data, CachedDataset) else None
        if isinstance(data, CachedDataset) and tokens is not None:
            self.truncated: int = data.index["tokens"]["truncated"]
        else:
            flat = [caption for captions in data.captions for caption in captions]
            before = getattr(tokenizer, "truncated", 0)
            tokens = tokenizer(flat, context_length=length, pad=pad).int()
            self.truncated = getattr(tokenizer, "truncated", 0) - before
        self._tokens = tokens  # (all captions, T) int32, half the memory of int64
        self._lengths = _lengths(tokens, None if pad else tokenizer.end_id)

    def pair(self, pixels: Tensor, indices: Tensor, passes: Tensor) -> tuple[Tensor, Tensor]:
        """Return images, here unchanged, and captions that are drawn for them.

        Args:
            pixels: (B, 3, S, S) images.
            indices: (B,) their indices.
            passes: (B,) number of earlier passes over the images.

        Returns:
            The images, and (B * C, T) int64 token ids, an image's captions next to each other; T is the longest
            caption's length.
        """
        rows = self.rows.draw(indices, passes)
        return pixels, self._tokens[rows, : int(self._lengths[rows].max())].long()


def caption_keys(tokens: Tensor, tokenizer: TextTokenizer | None) -> Tensor:
    """Return a hash of each caption's tokens (n, T), independent of padding: (n,) int64, on the CPU."""
    lengths = _lengths(tokens, None if tokenizer is None else tokenizer.end_id)
    rows = tokens.cpu().numpy()
    return hashes(row[:length].tobytes() for row, length in zip(rows, lengths.tolist(), strict=True))


def _lengths(tokens: Tensor, end_id: int | None) -> Tensor:
    """Return the length of each row (n, T) up to its first end token, T if it has none: (n,)."""
    is_end = torch.zeros_like(tokens, dtype=torch.bool) if end_id is None else tokens == end_id
    return torch.where(is_end.any(dim=1), is_end.int().argmax(dim=1) + 1, tokens.shape[1])


def hashes(rows: Iterable[bytes]) -> Tensor:
    """Return a hash of each row: (n,) int64."""
    digests = [hashlib.blake2b(row, digest_size=8).digest() for row in rows]
    return torch.tensor([int.from_bytes(digest, "big", signed=True) for digest in digests], dtype=torch.int64)
