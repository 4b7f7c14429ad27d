"""Retrieval: does a picture find its captions, and a caption its picture?

As in the literature on Flickr30k and COCO (Karpathy and Fei-Fei 2015): image-to-text counts a picture as found at K if
any of its captions is among the K nearest of all captions; text-to-image ranks all pictures for each caption.
Letters: N pictures, M captions, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from miniclip.data.cache.reading import require_pixels

KS = (1, 5, 10)
ROWS = 1024  # similarities are made so many rows at a time: N x M of a large set would not fit

Recalls = dict[str, dict[str, float]]


class Encoder(Protocol):
    """What evaluation asks of a model."""

    def encode_image(self, images: Any, /) -> Tensor:
        """Unit vectors (N, E)."""

    def encode_text(self, texts: Any, /) -> Tensor:
        """Unit vectors (M, E)."""


class Embedded(NamedTuple):
    """A data set as embeddings."""

    images: Tensor  # (N, E) unit vectors
    texts: Tensor  # (M, E) unit vectors
    owner: Tensor  # (M,) int64: the picture that each caption belongs to


def retrieval(model: Encoder, data: Any) -> Recalls:
    """Retrieval recall in both directions, each picture with all its captions.

    Args:
        model: anything with `encode_image` and `encode_text`.
        data: pictures with captions: `data[i]` is `(picture, captions)`, `data.captions` all captions.

    Returns:
        `{"image_to_text": {"R@1": …, "R@5": …, "R@10": …}, "text_to_image": {…}}`, in percent.

    Raises:
        ValueError: a packed set was packed for another model.
    """
    require_pixels(data, model)
    return recalls(embed(model, data.captions, Pictures(data)))


def embed(model: Encoder, captions: Sequence[Sequence[str]], pictures: Any) -> Embedded:
    """Embed all captions, and pictures in whatever form the model takes."""
    flat = [caption for group in captions for caption in group]
    counts = torch.tensor([len(group) for group in captions])
    images, texts = model.encode_image(pictures), model.encode_text(flat)
    return Embedded(images, texts, torch.arange(len(counts)).repeat_interleave(counts).to(images.device))


class Pictures(Sequence[Any]):
    """The pictures of a data set without their captions, opened one by one as they are asked for."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: Any) -> Any:
        """A picture, or a list of them for a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.data[index][0]


def recalls(embedded: Embedded, ks: Sequence[int] = KS) -> Recalls:
    """Recall at each K, both ways.

    Two pictures at 0 and 90 degrees, their captions at 10 and 20 degrees: both captions are nearest to the first
    picture, so text-to-image R@1 is 50; the first picture finds its own caption first, the second finds at 20 degrees
    its own before the other one, so image-to-text R@1 is 100.

    Args:
        embedded: unit vectors, and which caption belongs to which picture.
        ks: the ranks asked for.

    Returns:
        `{"image_to_text": {"R@1": percent, …}, "text_to_image": {…}}`.
    """
    ranks = {"image_to_text": image_to_text_ranks(embedded), "text_to_image": text_to_image_ranks(embedded)}
    return {way: {f"R@{k}": 100 * float((rank < k).double().mean()) for k in ks} for way, rank in ranks.items()}


def text_to_image_ranks(embedded: Embedded) -> Tensor:
    """For each caption, how many other pictures are at least as near as its own: (M,), 0 is best.

    A tie counts against the model, or one that maps everything to a single point would score 100; so does NaN.
    """
    ranks = []
    for start in range(0, len(embedded.texts), ROWS):
        similarity = embedded.texts[start : start + ROWS] @ embedded.images.T  # (rows, N)
        own = similarity.gather(1, embedded.owner[start : start + ROWS, None])
        ranks.append((~(similarity < own)).sum(dim=1) - 1)
    return torch.cat(ranks)


def image_to_text_ranks(embedded: Embedded) -> Tensor:
    """For each picture, how many captions of others are at least as near as its nearest own: (N,), 0 is best."""
    ranks = []
    for start in range(0, len(embedded.images), ROWS):
        similarity = embedded.images[start : start + ROWS] @ embedded.texts.T  # (rows, M)
        row = torch.arange(start, start + len(similarity), device=similarity.device)
        mine = embedded.owner == row[:, None]
        nearest = similarity.masked_fill(~mine, -torch.inf).amax(dim=1, keepdim=True)
        ranks.append((~(similarity < nearest) & ~mine).sum(dim=1))
    return torch.cat(ranks)
